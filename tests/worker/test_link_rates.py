"""The measured rate of a link, and the warnings about a slow one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baton.config.schema import RouterSection
from baton.protocol import bounds
from baton.protocol.errors import InvalidRequest
from baton.protocol.link_rate import LARGE_BYTES, slow_link
from baton.protocol.session_messages import LinkMeasured, PeerJoined, Register
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo
from baton.router.core.commands import SendToWorker
from baton.router.core.membership import Membership
from baton.router.policy.cluster_state import ClusterState
from baton.worker.core.link_rates import LinkRates

LAYOUT = PageLayout(8, 1, 4, 1, 1, "float32", "model")
SLOW, FAST = LinkMeasured("d:1", LARGE_BYTES, 0.1), LinkMeasured("d:1", LARGE_BYTES, 0.001)


def _info(name: str, host: str, device: str, incarnation: str = "1") -> WorkerInfo:
    endpoint = Endpoint(f"{name}:{incarnation}", LAYOUT)
    return WorkerInfo(name, incarnation, RoleName.MIXED, 0, endpoint, 8, 8, host=host, device=device)


def _members(*infos: WorkerInfo) -> tuple[Membership, list[SendToWorker]]:
    members = Membership(ClusterState(), RouterSection())
    for info in infos:
        members.returned(Register(info), 0.0)
    return members, members.admit("router", 0.0)


def test_the_fastest_of_the_first_three_large_writes_is_told_once() -> None:
    rates = LinkRates()
    rates.joined("d:1", "node")
    assert rates.ended("d:1", LARGE_BYTES - 1, 0.001) is None
    assert rates.ended("d:1", LARGE_BYTES, 0.5) is None  # opens the peer's memory
    assert rates.ended("d:1", LARGE_BYTES, 0.001) is None
    assert rates.ended("d:1", LARGE_BYTES, 0.002) == FAST
    assert rates.ended("d:1", LARGE_BYTES, 0.0001) is None


def test_a_peer_that_joins_again_is_measured_again_and_one_that_has_left_is_not() -> None:
    rates = LinkRates()
    for _ in range(2):
        rates.joined("d:1", "node")
        assert [rates.ended("d:1", LARGE_BYTES, 0.001) for _ in range(3)] == [None, None, FAST]
    rates.left("d:1")
    assert [rates.ended("d:1", LARGE_BYTES, 0.001) for _ in range(3)] == [None] * 3
    assert not rates._peers


@pytest.mark.parametrize(
    ("host", "device", "measured", "warned"),
    [
        ("node", "cuda:0", SLOW, True),
        ("node", "cuda:0", FAST, False),
        ("other", "cuda:0", SLOW, False),
        ("", "cuda:0", SLOW, False),
        ("node", "cpu", SLOW, False),
    ],
)
def test_only_a_slow_link_between_gpus_of_one_host_is_a_warning_in_the_log(
    host: str, device: str, measured: LinkMeasured, warned: bool
) -> None:
    rates = LinkRates()
    rates.joined("d:1", host)
    line, warning = rates.sentence(_info("p", "node", device), measured)
    assert ("below 20 GB/s" in line) is warning is warned
    assert "GB/s" in line
    assert "64 MiB to d:1" in line


def test_the_warning_is_one_sentence_that_says_what_to_do() -> None:
    sentence = slow_link("p", "d", 0.3e9, True)
    assert sentence.startswith("Pages go from p to d at 0.3 GB/s, below 20 GB/s")
    assert "UCX_TLS=cuda_copy,cuda_ipc,sm,tcp,self" in sentence
    assert sentence.count(". ") == 0
    assert slow_link("p", "d", 20e9, True) == ""


def test_workers_are_told_on_which_host_a_peer_is() -> None:
    _, orders = _members(_info("d", "one", "cpu"), _info("p", "two", "cpu"))
    joined = {order.worker: order.message for order in orders if isinstance(order.message, PeerJoined)}
    assert {name: message.host for name, message in joined.items()} == {"d": "two", "p": "one"}


def test_the_router_keeps_the_rates_of_workers_that_are_there() -> None:
    members, _ = _members(_info("d", "node", "cuda:0"), _info("p", "node", "cuda:0"), _info("q", "far", "cuda:0"))
    members.rates.measured("p", SLOW)
    members.rates.measured("q", SLOW)
    members.rates.measured("p", replace(FAST, agent="d:0"))  # an earlier life
    members.rates.measured("p", replace(FAST, agent="stranger:1"))
    near, far = members.rates.rates()
    assert (near.source, near.target, near.same_host, far.source, far.same_host) == ("p", "d", True, "q", False)
    assert near.warning
    assert not far.warning
    members.lose("d", True, 1.0)
    assert members.rates.rates() == []


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_cannot_be_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidRequest):
        bounds.check(LinkMeasured("d:1", 1, seconds))
