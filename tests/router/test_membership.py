"""Who belongs to the cluster, who must be ended, and whose pages are not to be touched yet."""

from __future__ import annotations

from dataclasses import replace

from baton.config.schema import RouterSection
from baton.protocol.messages import Release
from baton.protocol.session_messages import PeerJoined, PeerLeft, Register, RegisterAck, Reregister
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo
from baton.router.core.breaker import BREAKER_DEATHS, BREAKER_S, CUTS_PER_DEATH
from baton.router.core.commands import Kill, SendToWorker
from baton.router.core.membership import Membership
from baton.router.core.transfers import ORPHAN_S, Transfers
from baton.router.policy.cluster_state import ClusterState
from tests.router.send_orders import began, ended

LIMITS = RouterSection(lost_after_s=2.0)


def _register(name: str, incarnation: int = 1, role: RoleName = RoleName.DECODE) -> Register:
    layout = PageLayout(8, 1, 4, 1, 1, "float32", "model")
    endpoint = Endpoint(f"{name}:{incarnation}", layout)
    return Register(WorkerInfo(name, str(incarnation), role, 0, endpoint, 8, 8))


def _members(*names: str) -> Membership:
    members = Membership(ClusterState(), LIMITS)
    for name in names:
        members.returned(_register(name), 0.0)
    members.admit("router", 0.0)
    return members


def _dies_and_returns(members: Membership, name: str, times: int, every_s: float = 1.0) -> float:
    now = 0.0
    for incarnation in range(2, 2 + times):
        now += every_s
        members.lose(name, True, now)
        members.returned(_register(name, incarnation), 0.0)
        members.admit("router", now)
    return now


def test_workers_that_join_hear_of_each_other_after_their_welcome() -> None:
    members = Membership(ClusterState(), LIMITS)
    for name in ("a", "b"):
        members.returned(_register(name), 0.0)
    assert members.admit("router", 0.0) == [
        SendToWorker("a", RegisterAck("router", 0.5, "1")),
        SendToWorker("b", RegisterAck("router", 0.5, "1")),
        SendToWorker("a", PeerJoined(_register("b").info.endpoint)),
        SendToWorker("b", PeerJoined(_register("a").info.endpoint)),
    ]


def test_a_worker_is_silent_only_after_the_limit() -> None:
    members = _members("a", "b")
    members.state.workers["b"].last_message_s = 1.0
    assert members.silent(2.0) == []
    assert members.silent(2.5) == ["a"]


def test_a_router_that_stood_still_blames_no_worker() -> None:
    members = _members("a", "b")
    assert members.silent(0.1) == []
    assert members.silent(9.0) == []  # nothing was received while it was stopped
    assert all(view.last_message_s <= 9.0 for view in members.state.workers.values())
    members.state.workers["b"].last_message_s = 9.5
    assert [members.silent(9.0 + 0.1 * step) for step in range(1, 20)] == [[]] * 19
    assert members.silent(11.05) == ["a"]


def test_others_are_told_once_that_a_worker_has_left() -> None:
    members = _members("a", "b")
    assert members.lose("a", False, 1.0) == [SendToWorker("b", PeerLeft("a:1"))]
    assert members.lose("a", False, 1.0) is None


def test_a_stranger_is_sent_back_and_one_that_waits_to_be_admitted_is_not() -> None:
    members = _members("a")
    assert members.reregister("b", "7", "router") == [SendToWorker("b", Reregister("7", "router"))]
    members.returned(_register("b", 7), 0.0)
    assert members.reregister("b", "7", "router") == []
    assert members.reregister("b", "6", "router") == [SendToWorker("b", Reregister("6", "router"))]


def test_the_end_of_a_worker_that_stays_silent_is_asked_for_and_asked_for_again() -> None:
    members = _members("a", "b")
    members.lose("a", False, 2.0)
    assert members.kills(11.9) == []
    assert members.kills(12.1) == [Kill("a")]
    assert members.kills(12.2) == []
    assert members.kills(22.2) == [Kill("a")]
    members.ended("a", 22.3)
    assert members.kills(99.0) == []


def test_a_worker_that_came_back_or_whose_process_ended_is_not_killed() -> None:
    members = _members("a", "b")
    members.lose("a", False, 2.0)
    members.returned(_register("a", 2), 0.0)
    members.lose("b", True, 2.0)
    assert members.kills(99.0) == []


def test_three_deaths_within_ten_minutes_cordon_a_worker() -> None:
    members = _members("a", "b")
    _dies_and_returns(members, "a", BREAKER_DEATHS - 1)
    assert members.state.workers["a"].serving
    _dies_and_returns(members, "a", 1)
    assert not members.state.workers["a"].serving
    assert members.state.workers["b"].serving


def test_three_deaths_in_longer_than_that_do_not() -> None:
    members = _members("a", "b")
    _dies_and_returns(members, "a", BREAKER_DEATHS + 2, BREAKER_S / 2)
    assert members.state.workers["a"].serving


def test_a_worker_without_a_replacement_serves_however_often_it_dies() -> None:
    members = _members("a")
    members.returned(_register("p", role=RoleName.PREFILL), 0.0)
    members.admit("router", 0.0)
    _dies_and_returns(members, "a", BREAKER_DEATHS + 2)
    assert members.state.workers["a"].serving


def test_a_worker_is_admitted_only_when_no_write_into_its_reservations_is_possible() -> None:
    members = _members("a", "b")
    began(members.transfers, "r/1", "b", "a")
    members.lose("a", True, 1.0)
    members.returned(_register("a", 2), 0.0)
    assert members.admit("router", 1.0) == []
    assert "a" not in members.state.workers
    ended(members.transfers, "r/1", "b")
    assert SendToWorker("a", RegisterAck("router", 0.5, "2")) in members.admit("router", 1.0)
    assert members.state.workers["a"].info.incarnation == "2"


def test_the_death_of_the_writer_admits_it_too() -> None:
    members = _members("a", "b")
    began(members.transfers, "r/1", "b", "a")
    members.lose("a", True, 1.0)
    members.returned(_register("a", 2), 0.0)
    members.lose("b", False, 1.0)
    assert members.admit("router", 1.0) == []  # it is only silent, and may go on writing
    members.ended("b", 1.0)
    assert members.admit("router", 1.0)


def _fence() -> Transfers:
    return Transfers(ClusterState())


def test_pages_are_released_at_once_where_no_write_is_possible() -> None:
    order = SendToWorker("a", Release("r/1"))
    assert _fence().outgoing(order) == [order]


def test_pages_that_are_written_into_are_released_when_the_writer_has_answered() -> None:
    fence, order = _fence(), SendToWorker("a", Release("r/1"))
    began(fence, "r/1", "b", "a")
    assert fence.outgoing(order) == []
    assert fence.written_into("a")
    assert ended(fence, "r/1", "b") == [order]
    assert ended(fence, "r/1", "b") == []
    assert len(fence) == 0


def test_only_the_writers_own_end_releases_them_otherwise() -> None:
    fence = _fence()
    orders = {name: SendToWorker("a", Release(name)) for name in ("r/1", "s/1", "t/1")}
    for name, source in (("r/1", "b"), ("s/1", "c"), ("t/1", "b")):
        began(fence, name, source, "a")
    for name in ("r/1", "s/1"):
        assert fence.outgoing(orders[name]) == []
    assert fence.on_died("a", "a", 0.0) == []
    assert fence.on_died("b", "a", 0.0) == [orders["r/1"]]  # no release of the third was ordered yet
    assert fence.outgoing(orders["t/1"]) == [orders["t/1"]]
    assert fence.on_returned("c") == [orders["s/1"]]
    assert not fence.written_into("a")


def test_what_a_dead_writers_kernel_may_still_deliver_is_waited_for() -> None:
    fence, present = _fence(), {"a", "b", "c"}
    orders = {name: SendToWorker(name[0], Release(name)) for name in ("a/1", "b/1", "c/1", "d/1")}
    for name, order in orders.items():
        began(fence, name, "source", name[0])
        fence.outgoing(order)
    fence.on_stalled("source", "a/1")
    fence.on_stalled("source", "b/1")
    assert fence.on_died("b", present, 10.0) == []
    assert fence.on_died("source", present - {"b"}, 10.0) == [orders["b/1"], orders["c/1"]]  # b's pages are no more
    assert fence.written_into("a")
    assert fence.written_into("d")  # it was cut off as a whole
    assert fence.on_returned("source") == []  # the next process of that name
    assert fence.unanswered() == {}
    assert fence.holds("a/1")
    assert fence.due(10.0 + ORPHAN_S - 0.1) == []
    assert fence.on_died("d", present, 20.0) == [orders["d/1"]]
    assert fence.due(10.0 + ORPHAN_S) == [orders["a/1"]]
    assert len(fence) == 0


def test_another_process_under_the_same_name_tells_that_the_first_has_died() -> None:
    for pid, waits in ((7, False), (8, True)):
        members = _members("a", "b")
        members.lose("b", True, 0.0)
        members.returned(Register(replace(_register("b").info, pid=7)), 0.0)
        members.admit("router", 0.0)
        began(members.transfers, "r/1", "b", "a")
        members.transfers.on_stalled("b", "r/1")
        members.lose("b", False, 1.0)
        members.returned(Register(replace(_register("b", 2).info, pid=pid)), 2.0)
        assert members.transfers.written_into("a") is waits
        members.tick(2.0 + ORPHAN_S)
        assert not members.transfers.written_into("a")


def test_the_deaths_of_workers_that_never_come_back_are_forgotten() -> None:
    members = _members()
    for index in range(50):
        members.returned(_register(f"w{index}", 1), 0.0)
        members.admit("router", 0.0)
        members.lose(f"w{index}", True, float(index))
    assert len(members.breaker) == 50
    members.returned(_register("last", 1), 0.0)
    members.admit("router", 2 * BREAKER_S)
    members.lose("last", True, 2 * BREAKER_S)
    assert len(members.breaker) == 1


def _comes_back(members: Membership, name: str, times: int, pid: int) -> None:
    """It is cut off, given up, and joins again when the cable is whole."""
    for incarnation in range(2, 2 + times):
        members.lose(name, False, float(incarnation))
        message = _register(name, incarnation)
        members.returned(Register(replace(message.info, pid=pid)), float(incarnation))
        members.admit("router", float(incarnation))


def test_a_worker_that_leaves_on_purpose_has_not_died() -> None:
    members = _members("a", "b")
    for incarnation in range(2, 10):
        members.lose("a", True, float(incarnation), died=False)
        members.returned(_register("a", incarnation), 0.0)
        members.admit("router", float(incarnation))
    assert members.state.workers["a"].serving


def test_a_cut_that_heals_counts_for_less_than_a_death_but_counts() -> None:
    members = _members("b")
    members.returned(Register(replace(_register("a").info, pid=7)), 0.0)
    members.admit("router", 0.0)
    most = CUTS_PER_DEATH * BREAKER_DEATHS
    _comes_back(members, "a", most - 1, pid=7)
    assert members.state.workers["a"].serving
    _comes_back(members, "a", 1, pid=7)
    assert not members.state.workers["a"].serving


def test_silence_that_ends_with_another_process_was_a_death() -> None:
    members = _members("b")
    members.returned(Register(replace(_register("a").info, pid=7)), 0.0)
    members.admit("router", 0.0)
    for pid in range(8, 8 + BREAKER_DEATHS):
        _comes_back(members, "a", 1, pid)
    assert not members.state.workers["a"].serving
