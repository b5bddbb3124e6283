"""Migrations and operations that meet a death, a drain, a cancellation or each other."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from baton.protocol.errors import InvalidRequest
from baton.protocol.handoff import HandoffState
from baton.protocol.messages import HandoffEnded
from baton.protocol.worker import RoleName
from baton.router.core.live_request import LiveRequest
from baton.router.core.operation import Drain, Migrate, OperationState, Rebalance, StepState
from baton.router.policy.cluster_state import WorkerView
from baton.router.policy.policies import make_policy
from baton.simulator.links import Wire
from baton.simulator.stepped_cluster import SteppedCluster
from baton.simulator.virtual_worker import VirtualWorker

SEEDS = [seed for seed in range(14) if seed != 4]  # in which a sequence outgrows its reservation


def _cluster(
    seed: int, prefill: int, decode: int, mixed: int = 0, num_pages: int = 40, policy: str = "predicted_latency"
) -> SteppedCluster:
    placement = make_policy(policy, False)
    cluster = SteppedCluster(random.Random(seed), num_pages=num_pages, placement=placement, ends=False)
    cluster.add_pools(prefill, decode, mixed)
    return cluster


def _until(cluster: SteppedCluster, met: Callable[[], object]) -> None:
    for _ in range(4000):
        if met():
            return
        if not cluster.step():
            cluster.now += 0.1
            cluster.tick()
    raise AssertionError("it never comes to that")


def _decoding(cluster: SteppedCluster, max_tokens: int = 80, prompt: int = 30) -> LiveRequest:
    """A request that decodes, and that only its decode worker holds."""
    cluster.submit("r0", list(range(prompt)), max_tokens)
    record = cluster.core.requests.live["r0"]
    _until(cluster, lambda: record.decoding and len(record.holders) == 1)
    return record


def _others(cluster: SteppedCluster, home: str) -> list[str]:
    return [name for name in sorted(cluster.workers) if name.startswith("decode") and name != home]


def _really_on(cluster: SteppedCluster, request_id: str = "r0") -> list[str]:
    return [name for name, worker in cluster.workers.items() if request_id in getattr(worker.role, "_running", {})]


def _check_answered(cluster: SteppedCluster, record: LiveRequest) -> None:
    cluster.settle()
    assert cluster.ended["r0"].error is None
    assert cluster.shown["r0"] == cluster.expected(cluster.requests["r0"])
    cluster.check_nothing_is_held()


def _hold_back(cluster: SteppedCluster, worker: VirtualWorker, held: Callable[[], bool]) -> None:
    """The worker's link is slow: its report of a handoff's end waits while `held`."""
    deliver = cluster.deliver

    def slow(wire: Wire, count: int = 1) -> bool:
        if wire is worker.link.out and held():
            ends = (index for index, one in enumerate(worker.outbox[:count]) if isinstance(one, HandoffEnded))
            count = next(ends, count)
        return deliver(wire, count)

    cluster.deliver = slow  # type: ignore[method-assign]


def _pages_on_their_way(cluster: SteppedCluster) -> VirtualWorker:
    """The worker that a sequence is being written to, in the middle of it."""
    _until(cluster, lambda: cluster.network.writes)
    agent = cluster.network.writes[0].command.agent
    return next(worker for worker in cluster.workers.values() if worker.state.agent == agent)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_drain_that_is_given_up_because_the_target_died_while_pages_travelled_costs_nothing(seed: int) -> None:
    cluster = _cluster(seed, 1, 2)
    record = _decoding(cluster)
    operation = cluster.operate(Drain((record.decode_worker,)))
    cluster.kill(_pages_on_their_way(cluster).name)
    cluster.tick()
    _check_answered(cluster, record)
    assert operation.state is OperationState.FAILED
    assert cluster.ended["r0"].migrations == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_drain_that_is_cancelled_in_the_moment_the_target_died_costs_nothing(seed: int) -> None:
    cluster = _cluster(seed, 1, 3)
    record = _decoding(cluster)
    operation = cluster.operate(Drain((record.decode_worker,)))
    cluster.kill(_pages_on_their_way(cluster).name)
    cluster.cancel_operation(operation.operation_id)
    _check_answered(cluster, record)
    assert operation.state is OperationState.CANCELLED


def _migrate_in_the_moment_a_drain_finds_it(cluster: SteppedCluster) -> tuple[LiveRequest, str]:
    """A migration is asked for after its worker was told to drain, and before the drain's own."""
    cluster.submit("r0", [5] * 5, 130)
    record = cluster.core.requests.live["r0"]
    _until(cluster, lambda: record.decode_worker)
    home = record.decode_worker
    cluster.operate(Drain((home,)))
    _until(cluster, lambda: record.decoding)
    assert not record.migrating
    return record, home


@pytest.mark.parametrize("seed", SEEDS)
def test_two_migrations_of_one_request_are_answered_as_one_and_the_ledger_knows_where_it_is(seed: int) -> None:
    cluster = _cluster(seed, 1, 3, num_pages=60)
    record, home = _migrate_in_the_moment_a_drain_finds_it(cluster)
    operation = cluster.operate(Migrate("r0", _others(cluster, home)[0]))
    while "r0" not in cluster.ended:
        if not cluster.step():
            cluster.now += 0.1
            cluster.tick()
        on = _really_on(cluster)
        if on and record.decoding and not record.migrating:
            assert record.decode_worker in on
            assert record.decode_worker in record.holders
    _check_answered(cluster, record)
    assert operation.state.ended


def test_the_death_of_the_worker_two_migrations_led_to_is_noticed() -> None:
    moved = 0
    for seed in SEEDS:
        cluster = _cluster(seed, 1, 3, num_pages=60)
        record, home = _migrate_in_the_moment_a_drain_finds_it(cluster)
        cluster.operate(Migrate("r0", _others(cluster, home)[0]))
        _until(cluster, lambda: "r0" in cluster.ended or (record.decoding and _really_on(cluster) not in ([], [home])))  # noqa: B023
        if "r0" not in cluster.ended:
            moved += 1
            cluster.kill(_really_on(cluster)[0])
        _check_answered(cluster, record)
    assert moved > 3


@pytest.mark.parametrize("policy", ["round_robin", "predicted_latency", "kv_router"])
def test_with_the_last_decode_worker_drained_a_mixed_one_takes_what_was_prefilled(policy: str) -> None:
    for seed in range(4):
        cluster = _cluster(seed, 1, 1, 1, policy=policy)
        requests = [cluster.submit(f"r{index}", [index] * (10 + index), 20) for index in range(6)]
        for _ in range(6):
            cluster.step()
        operation = cluster.operate(Drain(("decode-0",)))
        cluster.settle()
        assert operation.state is OperationState.DONE
        assert all(cluster.shown[request.request_id] == cluster.expected(request) for request in requests)


def test_a_sequence_in_search_of_a_decode_worker_finds_a_mixed_one_when_the_pool_empties() -> None:
    found = 0
    for seed in range(20):
        cluster = _cluster(seed, 1, 1, 1, num_pages=14)
        requests = [cluster.submit(f"r{index}", [index + 1] * 12, 30) for index in range(10)]
        while cluster.core.requests.live and not cluster.core.dispatch._seeking:
            cluster.step()
        found += bool(cluster.core.dispatch._seeking)
        cluster.operate(Drain(("decode-0",)))
        cluster.settle()
        assert all(cluster.shown[request.request_id] == cluster.expected(request) for request in requests)
        if found == 3:
            return
    raise AssertionError("no request ever looked for a decode worker")


def test_a_tick_that_gives_a_prefill_worker_up_and_finds_its_decode_worker_pressed_leaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = _cluster(3, 1, 1, num_pages=60)
    cluster.submit("r1", [9, 3, 5, 11, 2], 60)
    first = cluster.core.requests.live["r1"]
    _until(cluster, lambda: first.decoding and first.holders == ("decode-0",))
    cluster.submit("r0", [7, 3, 5, 11, 2], 60)
    record, prefill = cluster.core.requests.live["r0"], cluster.workers["prefill-0"]
    _hold_back(cluster, prefill, lambda: True)
    _until(cluster, lambda: record.handoff is not None and record.handoff.state is HandoffState.ARRIVED)
    other = cluster.add("decode-1", RoleName.DECODE)
    cluster.receive(other)
    cluster.report(other)
    view = cluster.core.state.workers["decode-0"]
    view.report(replace(view.load, pages_free=2, pages_cached=0, steps=()), cluster.now)  # what a full worker says
    peak = WorkerView.peak_pages
    with monkeypatch.context() as patch:
        patch.setattr(WorkerView, "peak_pages", lambda self, extra=None: 61 if self is view else peak(self, extra))
        cluster.core.state.workers["prefill-0"].last_message_s = -100.0
        prefill.silent = True
        cluster.perform(cluster.core.tick(cluster.now))
    assert "prefill-0" not in cluster.core.state.workers
    cluster.kill("prefill-0")
    _check_answered(cluster, record)


def test_a_migration_ends_with_the_death_of_the_worker_it_leaves_and_not_with_the_next_attempt() -> None:
    cluster = _cluster(3, 1, 3, num_pages=100)
    record = _decoding(cluster, max_tokens=200, prompt=5)
    operation = cluster.operate(Migrate("r0"))
    cluster.kill(record.decode_worker)
    _until(cluster, lambda: len(cluster.shown["r0"]) > 60)
    assert operation.state is OperationState.FAILED
    assert "died" in operation.message
    assert record.decoding
    assert not record.migrating
    _check_answered(cluster, record)


def test_a_request_does_not_pay_for_the_deaths_of_workers_it_was_only_moving_to() -> None:
    cluster = _cluster(3, 1, 4, num_pages=100)
    record = _decoding(cluster, max_tokens=300, prompt=5)
    home, killed = record.decode_worker, 0
    while killed < 2:
        target = _others(cluster, home)[0]
        _until(cluster, lambda: record.may_move(cluster.now))
        cluster.operate(Migrate("r0", target))
        _until(cluster, lambda: cluster.network.writes or not record.migrating)
        if not record.migrating:
            continue
        cluster.kill(target)
        killed += 1
        _until(cluster, lambda: not record.migrating)
        cluster.now += 1.0
        cluster.tick()
    assert record.decode_worker == home
    _check_answered(cluster, record)


@pytest.mark.parametrize("state", [StepState.SWITCHING, StepState.VERIFYING])
def test_a_worker_that_is_restarted_while_it_switches_ends_the_operation_and_serves_again(state: StepState) -> None:
    cluster = _cluster(1, 1, 2)
    operation = cluster.operate(Rebalance(2, 1))
    (step,) = operation.steps
    _until(cluster, lambda: step.state is state)
    cluster.workers.pop(step.worker)
    cluster.add(step.worker, RoleName.DECODE, incarnation=2)  # before anybody noticed the death
    cluster.settle()
    assert operation.state is OperationState.FAILED
    assert cluster.core.state.workers[step.worker].serving
    assert cluster.core.state.workers[step.worker].role is RoleName.DECODE


def _only_decode_0_can_hold_it() -> tuple[SteppedCluster, LiveRequest]:
    """A decoding request that would outgrow the pages of the other decode worker."""
    cluster = _cluster(1, 1, 1, num_pages=60)
    cluster.num_pages = 16
    cluster.add("decode-1", RoleName.DECODE)
    cluster.settle()
    return cluster, _decoding(cluster, max_tokens=150, prompt=8)


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_drain_that_is_given_up_leaves_no_sequence_in_search_of_a_worker(cancelled: bool) -> None:
    cluster, record = _only_decode_0_can_hold_it()
    operation = cluster.operate(Drain((record.decode_worker,)))
    assert record.migrating
    if cancelled:
        cluster.cancel_operation(operation.operation_id)
    else:
        cluster.kill("decode-1")
        cluster.tick()
    assert (operation.state is OperationState.CANCELLED) is cancelled
    assert not record.migrating
    assert cluster.core.state.workers[record.decode_worker].serving
    _check_answered(cluster, record)


def test_nothing_moves_to_a_worker_whose_pages_could_never_hold_it_whole() -> None:
    cluster, record = _only_decode_0_can_hold_it()
    for worker in (None, "decode-1"):
        with pytest.raises(InvalidRequest):
            cluster.operate(Migrate("r0", worker))
    _check_answered(cluster, record)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_answer_that_overtakes_the_report_of_its_migration_is_told_to_have_moved(seed: int) -> None:
    cluster = _cluster(seed, 1, 2, num_pages=60)
    record = _decoding(cluster, max_tokens=40, prompt=5)
    home = record.decode_worker
    _hold_back(cluster, cluster.workers[home], lambda: len(cluster.shown["r0"]) < 40)
    operation = cluster.operate(Migrate("r0"))
    _check_answered(cluster, record)
    assert operation.state is OperationState.DONE
    assert cluster.ended["r0"].decode_worker != home
    assert cluster.ended["r0"].migrations == 1
