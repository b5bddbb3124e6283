"""Cables between workers that both reach the router are cut, healed and cut again: right tokens, and no page too early.

The harness holds every write of a cut pair until the cable is whole, lets one that was called off arrive all the same,
and checks as it lands that its pages are still the ones it was granted.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol.errors import Cancelled, HandoffFailed, WorkerLost
from baton.protocol.request import Request
from baton.protocol.worker import RoleName
from baton.router.core.operation import Drain, Migrate
from baton.router.core.transfers import ORPHAN_S, RELINK_AFTER_S
from baton.router.policy.placement import Placement
from baton.router.policy.policies import make_policy
from baton.router.policy.predicted_latency import PredictedLatency
from baton.simulator.stepped_cluster import SteppedCluster
from baton.simulator.virtual_worker import WRITE_STALL_S
from tests.router.ranks import any_ranks

PAGES = 120  # room for everybody beside the reservations that stay held while a cable is cut
SEEDS = st.integers(0, 2**32 - 1)


def _cluster(seed: int, prefill: int = 2, decode: int = 2, mixed: int = 0, policy: str = "") -> SteppedCluster:
    rng = random.Random(seed)
    placement: Placement = make_policy(policy, True) if policy else PredictedLatency()
    ends, split = seed % 3 == 0, seed % 2 == 0
    cluster = SteppedCluster(rng, PAGES, placement=placement, ends=ends, split=split, **any_ranks(seed))
    cluster.add_pools(prefill, decode, mixed)
    return cluster


def _cut(cluster: SteppedCluster, *pairs: tuple[str, str]) -> None:
    cluster.network.cut |= {frozenset(pair) for pair in pairs}


def _pass(cluster: SteppedCluster, seconds: float) -> None:
    """Time, with everything that happens in it."""
    for _ in range(round(seconds / 0.1)):
        cluster.now += 0.1
        cluster.tick()
        for _ in range(20):
            cluster.step()


def _right(cluster: SteppedCluster, requests: Iterable[Request]) -> None:
    for request in requests:
        assert cluster.ended[request.request_id].error is None
        assert cluster.shown[request.request_id] == cluster.expected(request)


def _heal(cluster: SteppedCluster) -> None:
    """Every cable is whole: nothing is held, and everybody is in everybody's reach again."""
    cluster.network.cut.clear()
    cluster.settle()
    if len(cluster.core.membership.transfers):  # a worker died whose writes may still arrive
        cluster.now += ORPHAN_S
        cluster.tick()
        cluster.settle()
    _pass(cluster, RELINK_AFTER_S + 1.0)
    cluster.settle()
    cluster.check_nothing_is_held()
    assert not cluster.network.writes
    assert len(cluster.core.membership.transfers) == 0
    assert not cluster.core.state.unreachable


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, policy=st.sampled_from(["", "least_loaded"]))
def test_requests_end_without_a_prefill_worker_reaching_one_decode_worker(seed: int, policy: str) -> None:
    cluster = _cluster(seed, prefill=1, policy=policy)
    _cut(cluster, ("prefill-0", "decode-0"))
    requests = cluster.submit_any(6)
    _pass(cluster, 10 * WRITE_STALL_S)
    cluster.settle()
    _right(cluster, requests)
    _heal(cluster)
    after = cluster.submit("after", list(range(9)), 5)
    cluster.settle()
    _right(cluster, [after])


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, policy=st.sampled_from(["", "least_loaded"]))
def test_a_prefill_worker_without_a_reachable_decode_worker_gives_requests_away(seed: int, policy: str) -> None:
    cluster = _cluster(seed, policy=policy)
    _cut(cluster, ("prefill-0", "decode-0"), ("prefill-0", "decode-1"))
    requests = cluster.submit_any(6)
    _pass(cluster, 20 * WRITE_STALL_S)
    cluster.settle()
    _right(cluster, requests)
    _heal(cluster)


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, policy=st.sampled_from(["", "least_loaded"]))
def test_where_no_prefill_worker_reaches_anybody_decode_workers_prefill(seed: int, policy: str) -> None:
    cluster = _cluster(seed, policy=policy)
    _cut(cluster, *((f"prefill-{one}", f"decode-{other}") for one in range(2) for other in range(2)))
    requests = cluster.submit_any(6)
    _pass(cluster, 40 * WRITE_STALL_S)
    cluster.settle()
    _right(cluster, requests)
    _heal(cluster)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, failing=st.sampled_from([0.0, 0.0, 0.1]))
def test_cables_are_cut_and_healed_at_any_moment(seed: int, failing: float) -> None:
    cluster = _cluster(seed, mixed=seed % 2)
    cluster.network.failing = failing
    rng, names, left = cluster.rng, sorted(cluster.workers), set()
    requests = cluster.submit_any(8)
    for _ in range(rng.randint(1, 10)):
        for _ in range(rng.randint(0, 30)):
            cluster.step()
        match rng.randrange(6):
            case 0 | 1:
                _cut(cluster, (rng.choice(names[:2]), rng.choice(names[2:])))
            case 2:
                _cut(cluster, ("decode-0", "decode-1"))
            case 3:
                cluster.network.cut.clear()
            case 4:
                _pass(cluster, rng.uniform(0.1, 3.0))
            case 5:
                left.add(f"r{rng.randrange(8)}")
                cluster.cancel(max(left), Cancelled("gone"))
    cluster.network.failing = 0.0
    _heal(cluster)
    for request in requests:
        shown, expected = cluster.shown[request.request_id], cluster.expected(request)
        error = cluster.ended[request.request_id].error
        assert shown == expected[: len(shown)]
        if error is None:
            assert shown == expected
        else:
            assert request.request_id in left or (failing and isinstance(error, HandoffFailed)), error


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_workers_die_while_cables_are_cut(seed: int) -> None:
    cluster = _cluster(seed)
    rng, names = cluster.rng, sorted(cluster.workers)
    _cut(cluster, (rng.choice(names[:2]), rng.choice(names[2:])), ("decode-0", "decode-1"))
    requests = cluster.submit_any(6)
    for _ in range(rng.randint(0, 60)):
        cluster.step()
    _pass(cluster, rng.uniform(0.0, 2.0))
    name = rng.choice(names)
    incarnation = cluster.workers[name].incarnation
    cluster.kill(name)
    _pass(cluster, rng.uniform(0.0, 2.0))
    cluster.add(name, RoleName(name.split("-")[0]), incarnation + 1)
    _heal(cluster)
    for request in requests:
        error = cluster.ended[request.request_id].error
        assert error is None or isinstance(error, WorkerLost)
        shown, expected = cluster.shown[request.request_id], cluster.expected(request)
        assert shown == (expected if error is None else expected[: len(shown)])


def _end_who_cannot_rejoin(cluster: SteppedCluster) -> None:
    """A worker whose own writes do not end cannot register again: its process ends, and another one starts."""
    for name, worker in sorted(cluster.workers.items()):
        own = [write for write in cluster.network.writes if write.source is worker and not write.called_off]
        if worker.leaving and any(cluster.network.is_cut(write) for write in own):
            cluster.kill(name)
            cluster.add(name, worker.role.name, worker.incarnation + 1)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS)
def test_cables_are_cut_while_connections_break_and_the_router_is_restarted(seed: int) -> None:
    cluster = _cluster(seed, mixed=seed % 2)
    rng, names = cluster.rng, sorted(cluster.workers)
    requests = cluster.submit_any(6)
    for _ in range(rng.randint(1, 8)):
        for _ in range(rng.randint(0, 30)):
            cluster.step()
        match rng.randrange(5):
            case 0:
                _cut(cluster, (rng.choice(names[:2]), rng.choice(names[2:])), ("decode-0", "decode-1"))
            case 1:
                cluster.network.cut.clear()
            case 2:
                _pass(cluster, rng.uniform(0.1, 1.5))
            case 3:
                cluster.break_connection(rng.choice(names))
            case 4:
                cluster.restart_router()
        _end_who_cannot_rejoin(cluster)
    _heal(cluster)
    for request in requests:
        error = cluster.ended[request.request_id].error
        assert error is None or isinstance(error, WorkerLost)
        shown, expected = cluster.shown[request.request_id], cluster.expected(request)
        assert shown == (expected if error is None else expected[: len(shown)])


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_a_sequence_that_cannot_move_goes_on_where_it_is(seed: int) -> None:
    cluster = _cluster(seed, prefill=1)
    request = cluster.submit("r", list(range(9)), 60)
    while "r" not in cluster.ended and not (cluster.core.requests.live["r"].decoding and len(cluster.shown["r"]) > 5):
        cluster.step()
    if "r" in cluster.ended:
        return
    record = cluster.core.requests.live["r"]
    home = record.decode_worker
    (other,) = {"decode-0", "decode-1"} - {home}
    _cut(cluster, ("decode-0", "decode-1"))
    operation = cluster.operate(Migrate("r", other))
    _pass(cluster, 4 * WRITE_STALL_S)
    cluster.settle()
    _right(cluster, [request])
    assert cluster.ended["r"].decode_worker == home
    assert operation.state.ended
    _heal(cluster)


def test_what_is_broken_is_not_chosen_and_is_known_by_both_until_it_is_mended() -> None:
    cluster = _cluster(4, prefill=1)
    state = cluster.core.state
    _cut(cluster, ("prefill-0", "decode-0"), ("prefill-0", "decode-1"))
    for index in range(2):
        cluster.submit(f"r{index}", [index] * 9, 20)
    _pass(cluster, 6 * WRITE_STALL_S)
    assert state.unreachable["prefill-0"] == {"decode-0", "decode-1"}
    assert state.unreachable["decode-0"] == {"prefill-0"}
    assert not state.table.is_prefill.any()
    assert len(cluster.core.membership.transfers) >= 2
    cluster.network.cut = {frozenset(("prefill-0", "decode-1"))}
    _pass(cluster, 1.0)
    assert state.unreachable == {"prefill-0": {"decode-1"}, "decode-1": {"prefill-0"}}
    assert state.table.is_prefill.any()
    _heal(cluster)


def test_a_drained_worker_gives_its_sequences_to_those_in_reach() -> None:
    cluster = _cluster(5, prefill=1, decode=3)
    requests = [cluster.submit(f"r{index}", [index] * 9, 90) for index in range(3)]
    while not all(record.decoding for record in cluster.core.requests.live.values()):
        cluster.step()
    home = cluster.core.requests.live["r0"].decode_worker
    others = sorted({"decode-0", "decode-1", "decode-2"} - {home})
    _cut(cluster, (home, others[0]))
    cluster.operate(Drain((home,)))
    _pass(cluster, 10 * WRITE_STALL_S)
    cluster.settle()
    _right(cluster, requests)
    _heal(cluster)


def test_a_prefill_worker_whose_last_decode_worker_in_reach_is_lost_gets_nothing() -> None:
    cluster = _cluster(30)
    _cut(cluster, ("prefill-0", "decode-0"))
    state = cluster.core.state
    for index in range(8):
        cluster.submit(f"r{index}", [index] * 9, 20)
    _pass(cluster, 3 * WRITE_STALL_S)
    assert state.unreachable["prefill-0"] == {"decode-0"}
    row = state.workers["prefill-0"].row
    assert state.table.is_prefill[row]
    cluster.kill("decode-1")
    assert not state.table.is_prefill[row]
    cluster.add("decode-1", RoleName.DECODE, 2)
    _pass(cluster, 1.0)
    assert state.table.is_prefill[row]
    cluster.settle()
    _heal(cluster)
