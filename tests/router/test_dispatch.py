"""The queue asks when something moved, hands out each request once, and remembers whom to avoid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from baton.config.schema import RouterSection
from baton.protocol.request import Objectives
from baton.router.core.core import RouterCore
from baton.router.core.dispatch import CROWD, LARGE, LEAST_PRICED, PAUSE_PER_PRICE_S, PAUSE_S, Dispatch, FoundDecode
from baton.router.policy.cluster_state import ClusterState, RunningSequence
from baton.router.policy.output_length import point
from baton.router.policy.placement import Place, PlacementInput, Refuse, RoutingDecision, refuse_full, refuse_late
from baton.router.policy.worker_table import CHUNKS_AHEAD
from tests.router.hand_driven import end_of, prompt_of
from tests.router.policy.clusters import CHUNK, cluster_of, worker_info


@dataclass
class Scripted:
    """Places whom it is told to, and counts how often it is asked."""

    ready: set[str] = field(default_factory=set)
    decode: str | None = None
    asked: int = 0
    name: str = "scripted"
    serves_locally: bool = False
    scanned: int = 1
    tight: bool = False

    def decide(self, queue: Sequence[PlacementInput], state: ClusterState, now: float) -> list[Place | Refuse]:
        self.asked += 1
        decision = RoutingDecision("prefill-0", None, False, "told to")
        return [Place(item.request_id, decision) for item in queue if item.request_id in self.ready]

    def find_decode(self, item: PlacementInput, state: ClusterState, avoid: str | None, now: float) -> str | None:
        return None if self.decode == avoid else self.decode


def item(request_id: str, arrival_s: float = 0.0) -> PlacementInput:
    return PlacementInput(request_id, 100, arrival_s=arrival_s)


def report(dispatch: Dispatch, worker: str) -> None:
    """Let the worker report, as it does ten times a second."""
    dispatch.state.report(dispatch.state.workers[worker].load, 0.0)
    dispatch.on_report(worker)


def give_room(dispatch: Dispatch, worker: str) -> None:
    """Let the worker begin to take prompts."""
    dispatch.state.assign(worker, "work", CHUNKS_AHEAD * CHUNK, (), 0.0)
    dispatch.state.unassign(worker, "work", 0.0)


def test_a_placed_request_waits_no_more_and_the_others_keep_their_place() -> None:
    policy = Scripted({"b"})
    dispatch = Dispatch(policy, cluster_of("prefill-0"))
    for number, name in enumerate("abc"):
        dispatch.wait(item(name, float(number)))
    assert [verdict.request_id for verdict in dispatch.next(5.0)] == ["b"]
    assert dispatch.queued == 2
    assert [one.request_id for one in dispatch.waiting] == ["a", "c"]
    policy.ready = {"a", "c"}
    assert [verdict.request_id for verdict in dispatch.next(5.0)] == ["a", "c"]
    assert dispatch.queued == 0


def test_the_policy_is_not_asked_again_until_something_moves() -> None:
    policy = Scripted()
    dispatch = Dispatch(policy, cluster_of("prefill-0"))
    dispatch.wait(item("a"))
    assert dispatch.next(0.0) == [] == dispatch.next(1.0)
    assert policy.asked == 1
    give_room(dispatch, "prefill-0")
    assert dispatch.next(1.0) == []
    assert policy.asked == 2
    report(dispatch, "prefill-0")
    assert dispatch.next(2.0) == []
    assert policy.asked == 2


def test_a_policy_that_has_seen_the_whole_queue_is_not_asked_again_after_its_decisions() -> None:
    policy = Scripted({"a"}, scanned=2)
    dispatch = Dispatch(policy, cluster_of("prefill-0"))
    dispatch.wait(item("a"))
    dispatch.wait(item("b"))
    assert [verdict.request_id for verdict in dispatch.next(0.0)] == ["a"]
    policy.ready = {"b"}
    assert dispatch.next(0.0) == []
    policy.scanned = 1
    dispatch.wait(item("c"))
    assert [verdict.request_id for verdict in dispatch.next(0.0)] == ["b"]
    policy.ready = {"c"}
    assert [verdict.request_id for verdict in dispatch.next(0.0)] == ["c"]


@pytest.mark.parametrize(
    ("opens", "happens"),
    [
        (True, lambda state: state.unassign("prefill-0", "work", 0.0)),
        (True, lambda state: state.report(replace(state.workers["prefill-0"].load, request_ids=("work",)), 0.0)),
        (False, lambda state: state.unassign("prefill-1", "little work", 0.0)),
        (False, lambda state: state.report(state.workers["prefill-0"].load, 0.0)),
        (True, lambda state: state.remove("decode-1")),
        (True, lambda state: state.cordon("prefill-0")),
        (True, lambda state: state.set_reachable("prefill-0", "decode-0", False)),
        (True, lambda state: state.register(worker_info("prefill-2"), 0.0)),
        (False, lambda state: state.assign("prefill-0", "more", 10, (), 0.0)),
        (False, lambda state: state.reserve("decode-0", "more", 10)),
        (False, lambda state: state.unassign("prefill-0", "unknown", 0.0)),
    ],
)
def test_the_policy_is_asked_again_when_a_worker_begins_to_take_prompts(
    opens: bool, happens: Callable[[ClusterState], object]
) -> None:
    assert asked_again(happens, tight=False) == opens


@pytest.mark.parametrize(
    ("releases", "happens"),
    [
        (True, lambda state: state.forget("decode-0", "sequence")),
        (True, lambda state: state.unreserve("decode-0", "pages")),
        (True, lambda state: state.report(replace(state.workers["decode-0"].load, reservation_ids=("pages",)), 0.0)),
        (False, lambda state: state.forget("decode-0", "unknown")),
        (False, lambda state: state.report(state.workers["decode-0"].load, 0.0)),
    ],
)
def test_pages_and_places_have_the_policy_asked_again_while_a_worker_lacks_them(
    releases: bool, happens: Callable[[ClusterState], object]
) -> None:
    assert asked_again(happens, tight=True) == releases
    assert not asked_again(happens, tight=False)


def asked_again(happens: Callable[[ClusterState], object], tight: bool) -> bool:
    """Whether the policy is asked again about a request that it could not place."""
    policy, state = Scripted(tight=tight), cluster_of("prefill-0", "prefill-1", "decode-0", "decode-1")
    state.assign("prefill-0", "work", CHUNKS_AHEAD * CHUNK, (), 0.0)
    state.assign("prefill-1", "little work", 10, (), 0.0)
    state.expect("decode-0", "sequence", RunningSequence(10, point(10)))
    state.reserve("decode-0", "pages", 10)
    dispatch = Dispatch(policy, state)
    dispatch.wait(item("a"))
    assert dispatch.next(0.0) == []
    happens(state)
    assert dispatch.next(1.0) == []
    return policy.asked == 2


def test_passes_over_a_crowd_that_no_worker_has_capacity_for_are_spaced() -> None:
    policy = Scripted()
    dispatch = Dispatch(policy, cluster_of("prefill-0"))
    for index in range(CROWD + 1):
        dispatch.wait(item(f"r{index}"))
    assert dispatch.next(0.0) == [] == dispatch.next(1.0)
    assert policy.asked == 1
    give_room(dispatch, "prefill-0")
    assert dispatch.next(1.0) == []
    give_room(dispatch, "prefill-0")
    assert dispatch.next(1.0 + CROWD * PAUSE_S / 2) == []
    assert policy.asked == 2
    assert dispatch.next(1.0 + 2 * CROWD * PAUSE_S) == []
    assert policy.asked == 3


def test_passes_over_a_large_cluster_are_spaced_so_that_requests_are_placed_together() -> None:
    policy = Scripted({"a", "b", "c"})
    dispatch = Dispatch(policy, cluster_of(*(f"prefill-{number}" for number in range(LARGE + 1))))
    dispatch.wait(item("a"))
    assert [verdict.request_id for verdict in dispatch.next(1.0)] == ["a"]
    pause_s = (LARGE + 1) * LEAST_PRICED * PAUSE_PER_PRICE_S
    for number, name in enumerate("bc"):
        dispatch.wait(item(name))
        assert dispatch.next(1.0 + number * pause_s / 2) == []
    assert [verdict.request_id for verdict in dispatch.next(1.0 + pause_s)] == ["b", "c"]


def test_a_decode_worker_that_refused_is_avoided_until_it_reports() -> None:
    policy = Scripted(decode="decode-0")
    dispatch = Dispatch(policy, cluster_of("decode-0"))
    dispatch.seek(item("a"), avoid="decode-0")
    assert dispatch.next(0.0) == []
    report(dispatch, "decode-0")
    assert dispatch.next(1.0) == [FoundDecode("a", "decode-0")]
    report(dispatch, "decode-0")
    assert dispatch.next(2.0) == []


def test_who_withdraws_is_placed_nowhere() -> None:
    dispatch = Dispatch(Scripted({"a"}, "decode-0"), cluster_of("decode-0"))
    dispatch.wait(item("a"))
    dispatch.seek(item("b"), None)
    dispatch.withdraw("a")
    dispatch.withdraw("b")
    assert dispatch.next(0.0) == []


def test_a_full_queue_refuses_with_a_time_to_come_again() -> None:
    core = RouterCore("router", Scripted(), RouterSection(max_queued=2))
    for name in ("prefill-0", "decode-0"):
        core.state.register(worker_info(name), 0.0)
    for name in "ab":
        prompt_of(core, name, 2)
    refusal = end_of(prompt_of(core, "c", 2, now=7.0))
    assert (refusal.error, refusal.retry_after_s) == ("Overloaded", 7.0)
    assert core.queued == 2


def test_a_refusal_says_when_to_come_again_unless_waiting_cannot_help() -> None:
    late = PlacementInput("r", 100, objectives=Objectives(ttft_s=1.0))
    assert refuse_late(late, wait_s=3.0, compute_s=0.5).retry_after_s == 3.0
    assert refuse_late(late, wait_s=0.0, compute_s=0.5).retry_after_s == 0.1
    hopeless = refuse_late(late, wait_s=3.0, compute_s=2.0)
    assert hopeless.retry_after_s is None
    assert "shorter" in hopeless.message
    assert refuse_full(5, 0.0).retry_after_s == 1.0
