"""Workers of several ranks: their memory, threads and devices, and what is refused."""

from __future__ import annotations

import pytest

from baton.config.facts import MachineFacts, ModelFacts
from baton.config.memory import MIB, PROCESS_BYTES
from baton.config.parse import parse_config
from baton.config.placement import demand
from baton.config.resolve import Resolved, resolve
from baton.protocol.errors import ConfigError

# 100 MiB of weights, and pages of 1 MiB in float32.
MODEL = ModelFacts("/m", "m", 256, 16384, num_parameters=25 * MIB, layer_values=4096, vocab_size=32000, num_kv_heads=2)
TWO_AND_FOUR = "[tensor_parallel]\nprefill = 2\ndecode = 4\n[engine]\nnum_pages = 40\nswap_memory_gib = 0\n"
GPUS = "".join(f"[placement.{pool}]\ngpus = 1\n" for pool in ("prefill", "decode"))


def _resolve(text: str, free_mib: int = 8000) -> Resolved:
    return resolve(parse_config(text), MachineFacts(8, free_mib * MIB, False), MODEL)


def test_each_pool_has_its_own_degree_and_a_worker_is_one_process_by_default() -> None:
    resolved = _resolve(TWO_AND_FOUR)
    ranks = [resolved.worker_config("w", role, "").engine.ranks for role in ("prefill", "decode", "mixed")]
    assert ranks == [2, 4, 1]
    assert resolved.settings["tensor_parallel"] == "prefill 2, decode 4 ranks per worker"
    assert _resolve("").worker_config("w", "decode", "").engine.ranks == 1
    assert "tensor_parallel" not in _resolve("").settings


def test_ranks_share_the_weights_and_have_processes_of_their_own() -> None:
    one, two = (_resolve(f"[tensor_parallel]\ndecode = {ranks}").worker_memory("decode") for ranks in (1, 2))
    assert two.weights == one.weights == 100 * MIB
    assert (one.process, two.process) == (PROCESS_BYTES, 2 * PROCESS_BYTES)
    assert f"{2 * PROCESS_BYTES // MIB} for 2 processes)" in two.words


def test_ranks_that_keep_the_same_head_have_its_pages_each() -> None:
    resolved = _resolve(TWO_AND_FOUR)
    assert [resolved.worker_memory(role).kv for role in ("prefill", "decode")] == [40 * MIB, 80 * MIB]
    assert resolved.settings["worker_memory"].startswith("prefill: ")
    assert "; decode: " in resolved.settings["worker_memory"]
    sized = _resolve("[tensor_parallel]\ndecode = 4\n[engine]\nkv_memory_gib = 0.0625")
    assert sized.num_pages == 32
    assert sized.worker_memory("decode").kv == 64 * MIB


def test_all_ranks_together_have_to_fit_into_the_machine() -> None:
    needed_mib = sum(each.total for each in _resolve(TWO_AND_FOUR).memory) // MIB
    with pytest.raises(
        ConfigError, match=r"1 worker of .* for 2 processes\) and 1 worker of .* for 4 processes\) with"
    ):
        _resolve(TWO_AND_FOUR, needed_mib)


def test_cores_are_divided_among_all_ranks_and_reserved_cores_belong_to_a_rank() -> None:
    assert _resolve("[tensor_parallel]\nprefill = 2\ndecode = 2").threads == 2
    reserved = _resolve("[tensor_parallel]\ndecode = 2\n[placement.decode]\ncpus = 3")
    assert reserved.worker_config("w", "decode", "").engine.threads == 3
    assert demand(reserved.config, "decode").bundle == {"CPU": 6}


def test_each_rank_has_a_gpu_to_itself() -> None:
    resolved = _resolve(f"[tensor_parallel]\nprefill = 4\ndecode = 4\n{GPUS}")
    assert resolved.worker_config("w", "decode", "").engine.gpu_memory_fraction == 0.9
    assert demand(resolved.config, "decode").words == "4 GPU"
    assert "no CUDA graphs" in resolved.settings["gpu"]
    one = _resolve(f"[tensor_parallel]\nprefill = 4\n{GPUS}")
    assert "CUDA graphs on decode workers" in one.settings["gpu"]
    for gpus, engine in ((0.5, ""), (4, ""), (0, "[engine]\ndevice = 'cuda'\n")):
        text = f"{engine}[tensor_parallel]\ndecode = 4\n{GPUS}".replace("[placement.decode]\ngpus = 1", "")
        with pytest.raises(ConfigError, match=r"each rank needs one GPU to itself, so set placement\.decode\.gpus = 1"):
            _resolve(f"{text}[placement.decode]\ngpus = {gpus}\n")


def test_a_pool_without_workers_needs_no_gpus() -> None:
    assert _resolve(f"[tensor_parallel]\nmixed = 4\n{GPUS}").roles == [("prefill-0", "prefill"), ("decode-0", "decode")]


@pytest.mark.parametrize("ranks", [0, 65, "'two'"])
def test_an_impossible_degree_is_named(ranks: object) -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel\.decode is"):
        parse_config(f"[tensor_parallel]\ndecode = {ranks}")


def test_degrees_survive_the_note_of_a_running_cluster() -> None:
    resolved = _resolve(TWO_AND_FOUR)
    assert Resolved.from_json(resolved.as_json()) == resolved
