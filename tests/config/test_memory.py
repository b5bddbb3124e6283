"""A cluster fits into the memory of its machine or container, or is refused with the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.config.facts import MachineFacts, ModelFacts
from baton.config.memory import (
    CLUSTER_BYTES,
    GATEWAY_BYTES,
    GIB,
    MIB,
    PROCESS_BYTES,
    Free,
    check_more_memory,
    cluster_bytes,
)
from baton.config.parse import parse_config
from baton.config.resolve import Resolved, resolve
from baton.protocol.errors import ConfigError

# Pages of 1 MiB in float32, of which a request needs 17; 100 MiB of weights.
MODEL = ModelFacts("/m", "m", 256, 16384, num_parameters=25 * MIB, layer_values=4096, vocab_size=32000)


def _resolve(free_mib: int, text: str = "", **facts: object) -> Resolved:
    machine = MachineFacts(4, free_mib * MIB, False, **facts)  # type: ignore[arg-type]
    return resolve(parse_config(text), machine, MODEL)


@settings(deadline=None)
@given(st.integers(min_value=1, max_value=40_000))
def test_for_any_free_memory_the_cluster_fits_or_is_refused(free_mib: int) -> None:
    least = cluster_bytes([replace(each, kv=17 * MIB, swap=0) for each in _resolve(40_000).memory], 1)
    if free_mib * MIB < least:
        with pytest.raises(ConfigError, match=f"there are {free_mib} MiB free"):
            _resolve(free_mib)
    else:
        resolved = _resolve(free_mib)
        assert cluster_bytes(resolved.memory, 1) <= free_mib * MIB
        assert resolved.num_pages >= 17


def test_a_cluster_does_not_take_all_of_a_large_memory() -> None:
    resolved = _resolve(20_000)
    assert (resolved.num_pages, resolved.host_pages) == (512, 512)  # a full batch of full-length requests
    assert _resolve(4000).num_pages == 500  # a quarter of a worker's share


def test_a_limit_of_1600_mib_gives_fewer_pages() -> None:
    resolved = _resolve(1400, memory_limit_bytes=1600 * MIB)
    assert 17 <= resolved.num_pages <= 120
    assert resolved.settings["memory"].endswith(
        "for 2 workers, 1 gateway, Ray and the router, of 1400 MiB free under the limit of 1600 MiB"
    )
    worker = resolved.worker_memory("decode")
    assert resolved.settings["worker_memory"] == (
        f"{-(-worker.total // MIB)} MiB (100 weights, {resolved.num_pages} KV pages, {resolved.host_pages} host swap, "
        f"{-(-worker.buffers // MIB)} buffers, {PROCESS_BYTES // MIB} process)"
    )


def test_too_little_memory_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError) as refusal:
        _resolve(900, memory_limit_bytes=1000 * MIB)
    words = str(refusal.value)
    assert "100 weights, 17 KV pages, 0 host swap" in words
    assert f"1 gateway, Ray and the router ({(CLUSTER_BYTES + GATEWAY_BYTES) // MIB})" in words
    assert "there are 900 MiB free under the limit of 1000 MiB" in words
    assert "\n" not in words


def test_requested_pages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="5000 KV pages"):
        _resolve(4000, "[engine]\nnum_pages = 5000")
    with pytest.raises(ConfigError, match="8192 host swap"):
        _resolve(4000, "[engine]\nswap_memory_gib = 8")


def test_gateways_on_other_nodes_take_no_memory_here() -> None:
    words = [
        _resolve(20_000, f"[pools]\ngateways = 3\n{placement}").settings["memory"]
        for placement in ("", "[placement.gateway]\nlabels = { pool = 'gateway' }")
    ]
    assert ["3 gateways" in each for each in words] == [True, False]
    sizes_mib = [int(each.split()[0]) for each in words]
    assert sizes_mib[0] - sizes_mib[1] == 3 * GATEWAY_BYTES // MIB


def test_more_workers_need_memory_of_their_own() -> None:
    worker = _resolve(4000).worker_memory("decode")
    check_more_memory(worker, 2, Free(2 * worker.total))
    with pytest.raises(ConfigError, match=r"2 workers more of .* and there are 600 MiB free"):
        check_more_memory(worker, 2, Free(600 * MIB))


def test_workers_on_other_nodes_have_memory_of_their_own() -> None:
    assert _resolve(4000, "[engine]\nnum_pages = 5000", all_workers_here=False).num_pages == 5000


def test_on_a_gpu_only_swapped_pages_take_host_memory() -> None:
    resolved = _resolve(1000, "[engine]\ndevice = 'cuda'")
    assert [(each.weights, each.kv) for each in resolved.memory] == [(0, 0), (0, 0)]
    assert "memory" not in resolved.settings


def test_the_numbers_survive_the_note_of_a_running_cluster() -> None:
    resolved = _resolve(4 * GIB // MIB)
    assert Resolved.from_json(resolved.as_json()) == resolved
