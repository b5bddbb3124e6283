"""Placement: the resources a worker reserves on its node, and the workers that are placed as a group."""

from __future__ import annotations

import pytest

from baton.config.parse import parse_config
from baton.config.placement import demand, groups, own_groups
from baton.config.resolve import Resolved, resolve
from baton.protocol.errors import ConfigError
from tests.config.test_config import MACHINE, MODEL

TWO_KINDS = """
[placement.prefill]
cpus = 4
gpus = 2
labels = { "ray.io/accelerator-type" = "H100" }
env = { UCX_TLS = "rc,cuda" }
[placement.decode]
gpus = 1
resources = { baton_decode = 1 }
labels = { "ray.io/accelerator-type" = "A100" }
"""


def _resolved(text: str) -> Resolved:
    return resolve(parse_config(text), MACHINE, MODEL)


def test_by_default_a_worker_reserves_nothing_and_has_no_group() -> None:
    resolved = _resolved("")
    assert demand(resolved.config, "prefill").bundle == {}
    assert demand(resolved.config, "prefill").words == ""
    assert groups(resolved.config, resolved.roles) == []
    assert "placement" not in resolved.settings


def test_each_pool_has_its_own_kind_of_node() -> None:
    resolved = _resolved(TWO_KINDS)
    prefill, decode = (demand(resolved.config, role) for role in ("prefill", "decode"))
    assert prefill.bundle == {"CPU": 4, "GPU": 2}
    assert prefill.env == {"UCX_TLS": "rc,cuda"}
    assert decode.words == "1 GPU, 1 baton_decode, ray.io/accelerator-type=A100"
    assert resolved.settings["placement"].startswith("free; prefill: 4 CPU, 2 GPU")


def test_a_worker_has_a_thread_per_reserved_core_unless_configured_otherwise() -> None:
    assert _resolved(TWO_KINDS).worker_config("prefill-0", "prefill", "").engine.threads == 4
    assert _resolved(TWO_KINDS).worker_config("decode-0", "decode", "").engine.threads == MACHINE.cores // 2
    assert _resolved(TWO_KINDS + "[engine]\nthreads = 3").worker_config("prefill-0", "prefill", "").engine.threads == 3


def _groups(strategy: str, prefill: int, decode: int, mixed: int = 0) -> list[tuple[str, list[str]]]:
    pools = f"[pools]\nprefill = {prefill}\ndecode = {decode}\nmixed = {mixed}\n"
    demands = "".join(f"[placement.{pool}]\ngpus = 1\n" for pool in ("prefill", "decode", "mixed"))
    resolved = _resolved(f"{pools}[placement]\nstrategy = '{strategy}'\n{demands}")
    made = groups(resolved.config, resolved.roles)
    return [(group.strategy, [name for name, _ in group.workers]) for group in made]


def test_packed_groups_have_workers_of_both_pools_on_one_node() -> None:
    assert _groups("pack", 2, 4) == [
        ("STRICT_PACK", ["prefill-0", "decode-0", "decode-2"]),
        ("STRICT_PACK", ["prefill-1", "decode-1", "decode-3"]),
    ]
    assert _groups("pack", 3, 1, mixed=2) == [("STRICT_PACK", ["prefill-0", "prefill-1", "prefill-2", "decode-0"])]
    assert _groups("pack", 0, 2) == []


def test_spread_is_one_group_of_all_workers() -> None:
    assert _groups("spread", 1, 2, 1) == [("SPREAD", ["prefill-0", "decode-0", "decode-1", "mixed-0"])]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[placement]\nstrategy = 'near'", r"placement\.strategy is 'near'"),
        ("[placement.decode]\ngpu = 1", "no key 'gpu'; did you mean 'gpus'"),
        ("[placement.decode]\ngpus = -1", r"placement\.decode\.gpus is -1"),
        ("[placement.decode.env]\nUCX_TLS = 1", r"placement\.decode\.env\.UCX_TLS is 1"),
        ("[placement.decode.resources]\nGPU = 1", "Ray's own GPU: use gpus"),
        ("[placement.decode.resources]\nbaton_decode = 0", r"resources\.baton_decode is 0"),
        ("[placement]\nstrategy = 'pack'\n[placement.prefill]\ngpus = 1", "a decode worker takes no resources"),
        (TWO_KINDS + "[placement]\nstrategy = 'pack'", "cannot be both ray.io/accelerator-type=H100 and"),
    ],
)
def test_a_mistake_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _resolved(text)


def test_a_resolved_configuration_survives_the_note_of_up() -> None:
    resolved = _resolved(TWO_KINDS)
    assert Resolved.from_json(resolved.as_json()) == resolved


def _ranks_groups(strategy: str, pools: str = "prefill = 1\ndecode = 1\nmixed = 1") -> list[tuple[str, str, list[str]]]:
    demands = "".join(f"[placement.{pool}]\ngpus = 1\n" for pool in ("prefill", "decode", "mixed"))
    degrees = "[tensor_parallel]\nprefill = 2\ndecode = 4\nmixed = 2\n"
    resolved = _resolved(f"[pools]\n{pools}\n{degrees}[placement]\nstrategy = '{strategy}'\n{demands}")
    made = groups(resolved.config, resolved.roles)
    return [(group.name, group.strategy, [name for name, _ in group.workers]) for group in made]


def test_a_worker_of_several_ranks_has_one_bundle_and_a_group_of_its_own_unless_it_is_in_another() -> None:
    own = [(f"group-{name}", "STRICT_PACK", [name]) for name in ("prefill-0", "decode-0", "mixed-0")]
    assert _ranks_groups("free") == own
    assert _ranks_groups("pack") == [("group-0", "STRICT_PACK", ["prefill-0", "decode-0"]), own[2]]
    assert _ranks_groups("spread") == [("group-0", "SPREAD", ["prefill-0", "decode-0", "mixed-0"])]


def test_ranks_without_resources_and_single_ranks_need_no_group() -> None:
    plain = _resolved("[tensor_parallel]\nprefill = 2\ndecode = 2\n[placement.prefill]\ncpus = 1\n")
    assert [group.name for group in groups(plain.config, plain.roles)] == ["group-prefill-0"]
    assert own_groups(plain.config, [("decode-1", "decode")]) == []
    assert [group.name for group in own_groups(plain.config, [("prefill-7", "prefill")])] == ["group-prefill-7"]
