"""Operators change the pools at any moment, and no client notices."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol.errors import BatonError
from baton.protocol.worker import RoleName
from baton.router.core.operation import Drain, Migrate, OperationSpec, OperationState, Rebalance, Undrain
from baton.simulator.stepped_cluster import SteppedCluster
from tests.router.ranks import any_ranks

SEEDS = st.integers(0, 2**32 - 1)


def _cluster(
    seed: int, prefill: int = 2, decode: int = 2, num_pages: int = 40, ends: bool = True, split: bool = False
) -> SteppedCluster:
    cluster = SteppedCluster(random.Random(seed), num_pages, ends=ends, split=split, **any_ranks(seed))
    cluster.add_pools(prefill, decode)
    return cluster


def _check(cluster: SteppedCluster, requests: list) -> None:  # type: ignore[type-arg]
    for request in requests:
        assert cluster.ended[request.request_id].error is None
        assert cluster.shown[request.request_id] == cluster.expected(request)
    cluster.check_nothing_is_held()


def _random_ask(rng: random.Random, cluster: SteppedCluster) -> OperationSpec:
    names = sorted(cluster.workers)
    match rng.randrange(5):
        case 0:
            return Drain((rng.choice(names),))
        case 1:
            return Undrain((rng.choice(names),))
        case 2:
            return Migrate(f"r{rng.randrange(8)}", rng.choice([None, *names]))
        case _:
            prefill = rng.randint(0, len(names))
            return Rebalance(prefill, len(names) - prefill)


@settings(deadline=None, max_examples=150)
@given(seed=SEEDS, death=st.booleans(), ends=st.booleans(), split=st.booleans())
def test_random_operations_cost_no_token_and_no_page(seed: int, death: bool, ends: bool, split: bool) -> None:
    cluster = _cluster(seed, ends=ends, split=split)
    rng = cluster.rng
    requests = cluster.submit_any(8, 20, 40)
    for _ in range(rng.randint(1, 12)):
        for _ in range(rng.randint(0, 25)):
            cluster.step()
        cluster.tick()
        try:
            operation = cluster.operate(_random_ask(rng, cluster))
            if rng.random() < 0.2:
                cluster.cancel_operation(operation.operation_id)
        except BatonError as error:
            assert error.message.endswith((".", "`."))
    if death:
        cluster.kill(rng.choice(sorted(cluster.workers)))
    cluster.settle()
    for operation in cluster.core.operations.running:
        # Only a lack of capacity may delay an operation, and no page is in use now.
        raise AssertionError(f"{operation.spec.title} goes on for ever: {operation.steps}")
    cluster.undrain_all()
    roles = [worker.role.name for worker in cluster.workers.values()]
    if RoleName.DECODE not in roles:  # the last one died when the other had just left the pool
        cluster.operate(Rebalance(len(roles) - 1, 1))
    cluster.settle()
    _check(cluster, requests)
    for view in cluster.core.state.workers.values():
        worker = cluster.workers[view.name]
        assert view.serving
        assert view.role is worker.role.name
        assert view.load.role_epoch == worker.state.role_epoch


def test_a_running_sequence_moves_with_its_tokens() -> None:
    cluster = _cluster(3)
    request = cluster.submit("r0", [1, 2, 3, 4, 5], 60)
    while len(cluster.shown["r0"]) < 10:
        cluster.step()
    source = cluster.core.requests.live["r0"].decode_worker
    operation = cluster.operate(Migrate("r0"))
    while operation.state is OperationState.RUNNING:
        cluster.step()
    assert operation.state is OperationState.DONE
    assert cluster.core.requests.live["r0"].decode_worker not in ("", source)
    assert not cluster.workers[source].role.occupancy().request_ids
    cluster.settle()
    _check(cluster, [request])


def test_a_sequence_can_move_back_and_forth_many_times() -> None:
    cluster = _cluster(3)
    request = cluster.submit("r0", [1, 2, 3, 4, 5], 90)
    moves = 0
    while "r0" not in cluster.ended:
        cluster.step()
        record = cluster.core.requests.live.get("r0")
        if record is not None and record.may_move(cluster.now):
            cluster.operate(Migrate("r0"))
            moves += 1
    cluster.settle()
    assert moves > 5
    _check(cluster, [request])


def test_a_drained_worker_gets_nothing_and_holds_nothing() -> None:
    cluster = _cluster(7)
    requests = cluster.submit_any(8, 20, 40)
    for _ in range(60):
        cluster.step()
    operation = cluster.operate(Drain(("decode-0",)))
    while operation.state is OperationState.RUNNING:
        cluster.step()
        cluster.tick()
    assert cluster.workers["decode-0"].state.pool.num_in_use == 0
    more = [cluster.submit(f"later{index}", [index] * 6, 9) for index in range(4)]
    while cluster.core.live:
        cluster.step()
        assert not cluster.workers["decode-0"].role.occupancy().request_ids
    cluster.settle()
    _check(cluster, [*requests, *more])


def test_a_switched_worker_serves_in_its_new_role_and_keeps_its_prefix_cache() -> None:
    cluster = _cluster(9)
    prompt = list(range(20))
    request = cluster.submit("r0", prompt, 3)
    cluster.settle()
    cached = {name: worker.state.pool.num_cached for name, worker in cluster.workers.items()}
    operation = cluster.operate(Rebalance(3, 1))
    cluster.settle()
    (step,) = operation.steps
    assert operation.state is OperationState.DONE
    assert cluster.workers[step.worker].role.name is RoleName.PREFILL
    assert cluster.workers[step.worker].state.pool.num_cached == cached[step.worker]
    assert cluster.workers[step.worker].state.role_epoch == 1
    _check(cluster, [request])


def test_a_worker_that_dies_while_it_switches_fails_the_operation_and_nothing_else() -> None:
    cluster = _cluster(11)
    requests = cluster.submit_any(6, 20, 40)
    for _ in range(80):
        cluster.step()
    operation = cluster.operate(Rebalance(1, 3))
    cluster.kill(operation.steps[0].worker)
    cluster.settle()
    assert operation.state is OperationState.FAILED
    assert "has died" in operation.message
    _check(cluster, requests)
