"""In any order of messages and writes, with clients that leave and workers that die: right tokens, no page lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol.errors import Cancelled, NoWorkers, WorkerLost
from baton.protocol.session_messages import Goodbye
from baton.protocol.worker import RoleName
from baton.router.core.operation import Drain
from baton.simulator.stepped_cluster import SteppedCluster
from baton.simulator.token_checker import expected_output
from tests.router.ranks import any_ranks

SEEDS = st.integers(0, 2**32 - 1)


def _cluster(seed: int, prefill: int = 2, decode: int = 2, mixed: int = 0) -> SteppedCluster:
    cluster = SteppedCluster(random.Random(seed), split=seed % 2 == 0, **any_ranks(seed))
    cluster.add_pools(prefill, decode, mixed)
    return cluster


def _prompts(rng: random.Random, count: int) -> list[tuple[list[int], int]]:
    """Short and long prompts over a small alphabet, many with a common beginning."""
    shared = [rng.randrange(5) for _ in range(16)]
    return [
        (
            shared[: rng.choice([0, 4, 9, 16])] + [rng.randrange(90) for _ in range(rng.randint(1, 24))],
            rng.randint(1, 12),
        )
        for _ in range(count)
    ]


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS)
def test_every_request_gets_its_tokens_and_every_page_comes_back(seed: int) -> None:
    cluster = _cluster(seed)
    requests = []
    for index, (prompt, max_tokens) in enumerate(_prompts(cluster.rng, 8)):
        requests.append(cluster.submit(f"r{index}", prompt, max_tokens))
        for _ in range(cluster.rng.randint(0, 8)):
            cluster.step()
    cluster.settle()
    for request in requests:
        assert cluster.shown[request.request_id] == expected_output(request)
        assert cluster.ended[request.request_id].error is None
    cluster.check_nothing_is_held()


@settings(deadline=None, max_examples=80)
@given(seed=SEEDS)
def test_clients_may_leave_at_any_moment(seed: int) -> None:
    cluster = _cluster(seed, prefill=1, decode=1)
    requests = [cluster.submit(f"r{i}", prompt, tokens) for i, (prompt, tokens) in enumerate(_prompts(cluster.rng, 6))]
    for request in requests:
        for _ in range(cluster.rng.randint(0, 15)):
            cluster.step()
        if cluster.rng.random() < 0.7:
            cluster.cancel(request.request_id, Cancelled("gone"))
    cluster.settle()
    for request in requests:
        shown, expected = cluster.shown[request.request_id], expected_output(request)
        assert shown == expected[: len(shown)]
        if cluster.ended[request.request_id].error is None:
            assert shown == expected
    cluster.check_nothing_is_held()


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS)
def test_a_worker_may_die_at_any_moment(seed: int) -> None:
    cluster = _cluster(seed)
    requests = [cluster.submit(f"r{i}", prompt, tokens) for i, (prompt, tokens) in enumerate(_prompts(cluster.rng, 6))]
    for _ in range(cluster.rng.randint(0, 60)):
        cluster.step()
    cluster.kill(cluster.rng.choice(sorted(cluster.workers)))
    cluster.settle()
    for request in requests:
        assert cluster.ended[request.request_id].error is None
        assert cluster.shown[request.request_id] == expected_output(request)
    cluster.check_nothing_is_held()


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS)
def test_a_worker_may_die_and_come_back(seed: int) -> None:
    cluster = _cluster(seed, prefill=1, decode=1)
    requests = [cluster.submit(f"r{i}", prompt, tokens) for i, (prompt, tokens) in enumerate(_prompts(cluster.rng, 5))]
    for _ in range(cluster.rng.randint(0, 60)):
        cluster.step()
    name = cluster.rng.choice(sorted(cluster.workers))
    cluster.kill(name)
    for _ in range(cluster.rng.randint(0, 20)):
        cluster.step()
    cluster.add(name, RoleName(name.split("-")[0]), incarnation=2)
    cluster.settle()
    for request in requests:
        assert cluster.ended[request.request_id].error is None
        assert cluster.shown[request.request_id] == expected_output(request)
    cluster.check_nothing_is_held()


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_all_three_pools_serve_together(seed: int) -> None:
    cluster = _cluster(seed, prefill=1, decode=1, mixed=1)
    requests = [cluster.submit(f"r{i}", prompt, tokens) for i, (prompt, tokens) in enumerate(_prompts(cluster.rng, 8))]
    cluster.settle()
    for request in requests:
        assert cluster.shown[request.request_id] == expected_output(request)
    assert {completion.prefill_worker for completion in cluster.ended.values()} >= {"prefill-0", "mixed-0"}
    cluster.check_nothing_is_held()


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_mixed_workers_short_of_pages_preempt_and_still_finish(seed: int) -> None:
    cluster = SteppedCluster(random.Random(seed), num_pages=12)
    cluster.add("mixed-0", RoleName.MIXED)
    cluster.settle()
    requests = [cluster.submit(f"r{index}", [index] * 9, 20) for index in range(6)]
    cluster.settle()
    for request in requests:
        assert cluster.shown[request.request_id] == expected_output(request)
    cluster.check_nothing_is_held()


def test_a_request_that_meets_death_twice_is_not_tried_again() -> None:
    cluster = _cluster(1, prefill=1, decode=2)
    request = cluster.submit("r", [1, 2, 3], 50)
    for _ in range(2):
        while not cluster.shown["r"] or not cluster.core.requests.live["r"].decode_worker:
            cluster.step()
        victim = cluster.core.requests.live["r"].decode_worker
        while cluster.workers[victim].role.occupancy().running == 0:
            cluster.step()
        cluster.kill(victim)
        for _ in range(5):
            cluster.step()
    cluster.settle()
    assert isinstance(cluster.ended["r"].error, WorkerLost)
    assert cluster.shown["r"] == expected_output(request)[: len(cluster.shown["r"])]
    cluster.check_nothing_is_held()


@pytest.mark.parametrize("times", [3, 4])
def test_silence_blames_a_request_half_as_much_as_death(times: int) -> None:
    """Cut off workers fall silent too, and that is no request's fault."""
    cluster = _cluster(1, prefill=1, decode=6)
    request = cluster.submit("r", [1, 2, 3], 80)
    for _ in range(times):
        while "r" in cluster.core.requests.live and not (
            (worker := cluster.workers.get(cluster.core.requests.live["r"].decode_worker or "")) is not None
            and not worker.silent
            and worker.role.occupancy().running
        ):
            cluster.step()
        assert worker is not None
        cluster.silence(worker.name)
    for worker in cluster.workers.values():
        worker.silent = False
    cluster.settle()
    error = cluster.ended["r"].error
    assert isinstance(error, WorkerLost) if times == 4 else error is None
    assert cluster.shown["r"] == expected_output(request)[: len(cluster.shown["r"])]
    cluster.check_nothing_is_held()


@pytest.mark.parametrize("failed", [False, True])
def test_a_goodbye_blames_only_where_the_worker_has_failed(failed: bool) -> None:
    cluster = _cluster(1, prefill=1, decode=4)
    request = cluster.submit("r", [1, 2, 3], 80)
    for _ in range(2):
        while (victim := cluster.core.requests.live["r"].decode_worker) not in cluster.workers:
            cluster.step()
        while cluster.workers[victim].role.occupancy().running == 0:
            cluster.step()
        worker = cluster.workers.pop(victim)
        cluster.to_router(worker, [Goodbye("", failed)])
    cluster.settle()
    assert len(cluster.core.membership.breaker) == (2 if failed else 0)
    error = cluster.ended["r"].error
    assert isinstance(error, WorkerLost) if failed else error is None
    assert cluster.shown["r"] == expected_output(request)[: len(cluster.shown["r"])]
    cluster.check_nothing_is_held()


def test_a_drained_worker_stays_drained_when_its_connection_breaks() -> None:
    cluster = _cluster(1)
    cluster.operate(Drain(("decode-0",)))
    cluster.settle()
    for _ in range(4):
        cluster.break_connection("decode-0")
        cluster.settle()
    assert not cluster.core.state.workers["decode-0"].serving
    assert len(cluster.core.membership.breaker) == 0


def test_without_workers_a_request_is_refused_at_once() -> None:
    cluster = SteppedCluster(random.Random(0))
    try:
        cluster.submit("r", [1], 1)
    except NoWorkers as error:
        assert error.retryable
    else:
        raise AssertionError("accepted")
