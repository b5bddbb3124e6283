"""Workers fall silent at any moment and come back, are killed, or lose their link: no page is reused too early.

The harness checks every write as it lands, also those of a silent worker: its pages are still the ones it was granted.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Collection

from hypothesis import example, given, settings
from hypothesis import strategies as st

from baton.protocol.errors import BatonError, Cancelled, WorkerLost
from baton.protocol.handoff import HandoffOutcome
from baton.protocol.messages import FirstToken, HandoffEnded, RequestFailed, SequenceEnded, WorkerMessage
from baton.protocol.request import FinishReason, Request
from baton.protocol.session_messages import Goodbye, Reregister
from baton.protocol.worker import RoleName
from baton.router.core.commands import SendToWorker
from baton.router.core.operation import Drain, Migrate, OperationSpec, Rebalance, Undrain
from baton.router.core.transfers import ORPHAN_S
from baton.simulator.stepped_cluster import SteppedCluster
from tests.router.ranks import any_ranks

SEEDS = st.integers(0, 2**32 - 1)


def _cluster(seed: int, prefill: int = 2, decode: int = 2, mixed: int = 0, duplicates: float = 0.0) -> SteppedCluster:
    rng = random.Random(seed)
    pages, ends, split = rng.choice([20, 30]), seed % 3 == 0, seed % 2 == 0
    cluster = SteppedCluster(rng, pages, ends=ends, split=split, duplicates=duplicates, **any_ranks(seed))
    cluster.add_pools(prefill, decode, mixed)
    return cluster


def _disturb(cluster: SteppedCluster) -> None:
    """A worker falls silent, speaks again, or is killed; at most one is silent at a time."""
    rng = cluster.rng
    silent = [name for name, worker in sorted(cluster.workers.items()) if worker.silent]
    if not silent:
        cluster.workers[rng.choice(sorted(cluster.workers))].silent = True
    elif rng.random() < 0.8:
        cluster.workers[silent[0]].silent = False
    else:
        _replace(cluster, silent[0])


def _replace(cluster: SteppedCluster, name: str) -> None:
    role, incarnation = RoleName(name.split("-")[0]), cluster.workers[name].incarnation
    cluster.kill(name)
    cluster.add(name, role, incarnation + 1)


def _operate(cluster: SteppedCluster) -> None:
    rng, names = cluster.rng, sorted(cluster.workers)
    asks: list[OperationSpec] = [
        Drain((rng.choice(names),)),
        Undrain((rng.choice(names),)),
        Migrate(f"r{rng.randrange(6)}"),
    ]
    with contextlib.suppress(BatonError):
        cluster.operate(rng.choice([*asks, Rebalance(1, 3), Rebalance(2, 2)]))


def _everybody_speaks(cluster: SteppedCluster) -> None:
    for worker in cluster.workers.values():
        worker.silent = False
    cluster.settle()
    if len(cluster.core.membership.transfers):  # a worker died whose writes may still arrive
        cluster.now += ORPHAN_S
        cluster.tick()
        cluster.settle()
    assert not cluster.core.operations.running
    cluster.undrain_all()
    roles = {worker.role.name for worker in cluster.workers.values()}
    if not roles & {RoleName.DECODE, RoleName.MIXED}:
        cluster.operate(Rebalance(len(cluster.workers) - 1, 1))
    cluster.settle()


def _check(cluster: SteppedCluster, requests: list[Request], left: Collection[str] = ()) -> None:
    for request in requests:
        shown, expected = cluster.shown[request.request_id], cluster.expected(request)
        error = cluster.ended[request.request_id].error
        assert shown == expected[: len(shown)]
        if error is None:
            assert shown == expected
        else:  # it was on two workers that died, or its client is gone
            assert request.request_id in left or isinstance(error, WorkerLost), error
    cluster.check_nothing_is_held()
    assert not cluster.network.writes
    assert len(cluster.core.membership.transfers) == 0
    for name, view in cluster.core.state.workers.items():
        assert view.info.incarnation == str(cluster.workers[name].incarnation)
        assert view.role is cluster.workers[name].role.name


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_a_worker_that_falls_silent_at_any_moment_and_comes_back_costs_no_token_and_no_page(seed: int) -> None:
    cluster = _cluster(seed)
    requests = cluster.submit_any(6)
    cluster.go_on(cluster.rng.randint(0, 60))
    name = cluster.rng.choice(sorted(cluster.workers))
    cluster.workers[name].silent = True
    cluster.go_on(cluster.rng.randint(0, 300))
    _everybody_speaks(cluster)
    _check(cluster, requests)
    assert all(completion.error is None for completion in cluster.ended.values())


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, operators=st.booleans(), leavers=st.booleans())
@example(seed=9234160, operators=False, leavers=True)  # a writer dies whose write was stalled
def test_silence_death_operations_and_cancellations_at_any_moment(seed: int, operators: bool, leavers: bool) -> None:
    cluster = _cluster(seed, mixed=seed % 2)
    rng, left = cluster.rng, set()
    requests = cluster.submit_any(6)
    for _ in range(rng.randint(1, 8)):
        cluster.go_on(rng.randint(0, 40))
        _disturb(cluster)
        if operators and rng.random() < 0.5:
            _operate(cluster)
        if leavers and rng.random() < 0.3:
            left.add(f"r{rng.randrange(6)}")
            cluster.cancel(max(left), Cancelled("gone"))
    _everybody_speaks(cluster)
    _check(cluster, requests, left)


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_a_worker_that_stays_silent_is_killed_and_its_pages_come_back(seed: int) -> None:
    cluster = _cluster(seed)
    requests = cluster.submit_any(6)
    cluster.go_on(cluster.rng.randint(0, 60))
    name = cluster.rng.choice(sorted(cluster.workers))
    cluster.workers[name].silent = True
    cluster.settle()
    for _ in range(120):  # longer than a worker may stay silent
        cluster.now += 0.1
        cluster.tick()
    assert name not in cluster.workers
    cluster.settle()
    cluster.now += ORPHAN_S  # the kernel of a killed writer may send on for so long
    cluster.tick()
    cluster.settle()
    _check(cluster, requests)


def _cut(cluster: SteppedCluster, name: str, away: bool) -> None:
    """Everything queued in one direction is lost with the link: the worker notices it, or the router misses it."""
    worker = cluster.workers[name]
    if away:
        cluster.perform_for(worker, worker.session.on_link_full(cluster.now))
    else:
        worker.inbox.clear()
        cluster.silence(name)
        worker.inbox.clear()
        worker.silent = False


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
@example(seed=457)  # a writer calls off its write to a worker that is away and still listens
def test_whatever_is_lost_with_a_link_no_token_and_no_page_is(seed: int) -> None:
    cluster = _cluster(seed)
    requests = cluster.submit_any(6)
    for _ in range(cluster.rng.randint(1, 3)):
        cluster.go_on(cluster.rng.randint(0, 60))
        name = cluster.rng.choice(sorted(cluster.workers))
        worker = cluster.workers[name]
        if worker.serving and worker.stepping is None:
            _cut(cluster, name, cluster.rng.random() < 0.5)
    _everybody_speaks(cluster)
    _check(cluster, requests)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, share=st.sampled_from([0.02, 0.2, 1.0]))
def test_a_message_that_arrives_twice_changes_nothing(seed: int, share: float) -> None:
    cluster = _cluster(seed, duplicates=share)
    requests = cluster.submit_any(6)
    cluster.go_on(100)
    _everybody_speaks(cluster)
    _check(cluster, requests)
    assert all(completion.error is None for completion in cluster.ended.values())


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_a_worker_restarted_before_anybody_noticed_does_not_obey_the_orders_for_the_one_that_died(seed: int) -> None:
    cluster = _cluster(seed)
    requests = cluster.submit_any(6)
    cluster.go_on(cluster.rng.randint(0, 60))
    name = cluster.rng.choice(sorted(cluster.workers))
    dead = cluster.workers.pop(name)
    cluster.network.writes = [write for write in cluster.network.writes if write.source is not dead]
    fresh = cluster.add(name, dead.role.name, dead.incarnation + 1)
    fresh.inbox = dead.inbox  # the link hands over to it what was for the other
    _everybody_speaks(cluster)
    _check(cluster, requests)


def test_late_messages_of_a_life_that_was_given_up_change_nothing() -> None:
    cluster = _cluster(7)
    (request,) = cluster.submit_any(1)
    while not cluster.shown["r0"]:
        cluster.step()
    name = cluster.core.requests.live["r0"].prefill_worker
    cluster.silence(name)
    late: list[WorkerMessage] = [
        FirstToken("r0"),
        SequenceEnded("r0", FinishReason.STOP, 1),
        HandoffEnded("r0", "r0/1", HandoffOutcome.FAILED),
        RequestFailed("r0", "InternalError", "broken"),
        Goodbye("stopped"),
    ]
    for message in late:
        (answer,) = cluster.core.on_frame(name, "1", [message], cluster.now)
        assert answer == SendToWorker(name, Reregister("1", "router"))
    _everybody_speaks(cluster)
    _check(cluster, [request])
    assert cluster.ended["r0"].error is None
