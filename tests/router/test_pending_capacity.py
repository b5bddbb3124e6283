"""Requests that arrive before there is a worker for them, and workers that refuse what they were sent."""

from __future__ import annotations

import random

import pytest

from baton.config.schema import RouterSection
from baton.protocol.errors import NoWorkers, PromptTooLong, WrongRole
from baton.protocol.messages import Prefill, RequestFailed
from baton.protocol.worker import RoleName
from baton.router.core.core import RouterCore
from baton.router.core.live_request import Phase
from baton.router.policy.predicted_latency import PredictedLatency
from baton.simulator.stepped_cluster import SteppedCluster
from tests.router.hand_driven import end_of, prompt_of
from tests.router.restarts import check_answers, finish, random_cluster


def _core(grace_s: float) -> RouterCore:
    return RouterCore("router", PredictedLatency(), RouterSection(no_workers_grace_s=grace_s), started_s=0.0)


def _deliver(cluster: SteppedCluster) -> None:
    """Let everything arrive that is on its way."""
    while cluster.step():
        pass


def test_requests_wait_a_moment_for_the_first_worker_that_decodes() -> None:
    cluster = SteppedCluster(random.Random(0))
    cluster.core = cluster.new_router("young", cluster.now)
    requests = [cluster.submit("r0", [1, 2, 3], 4)]
    cluster.add("prefill-0", RoleName.PREFILL)
    for _ in range(10):
        cluster.step()
    requests.append(cluster.submit("r1", [1, 2, 3] * 4, 4))
    cluster.add("decode-0", RoleName.DECODE)
    finish(cluster)
    check_answers(cluster, requests)


def test_requests_that_waited_for_a_worker_in_vain_fail_with_the_reason() -> None:
    cluster = SteppedCluster(random.Random(0))
    cluster.core = cluster.new_router("young", cluster.now)
    cluster.submit("r0", [1, 2, 3], 4)
    _deliver(cluster)
    cluster.now += 4.9
    cluster.tick()
    _deliver(cluster)
    assert "r0" not in cluster.ended
    cluster.now += 0.2
    cluster.tick()
    _deliver(cluster)
    assert isinstance(cluster.ended["r0"].error, NoWorkers)
    with pytest.raises(NoWorkers, match="start one"):
        cluster.submit("r1", [1, 2, 3], 4)
    assert cluster.core.live == 0


def test_the_grace_counts_anew_from_when_the_last_worker_was_lost() -> None:
    cluster = SteppedCluster(random.Random(0))
    cluster.add("mixed-0", RoleName.MIXED)
    cluster.settle()
    cluster.now += 100.0
    cluster.kill("mixed-0")
    cluster.submit("r0", [1, 2, 3], 4)
    cluster.now += 1.0
    cluster.add("mixed-0", RoleName.MIXED, 2)
    finish(cluster)
    assert cluster.ended["r0"].error is None


def test_a_prompt_that_turns_out_too_long_for_those_who_came_is_refused() -> None:
    cluster = SteppedCluster(random.Random(0), num_pages=4)
    cluster.core = cluster.new_router("young", cluster.now)
    cluster.submit("r0", [1] * 30, 4)
    cluster.add("mixed-0", RoleName.MIXED)
    finish(cluster)
    assert isinstance(cluster.ended["r0"].error, PromptTooLong)


def test_without_grace_no_request_waits() -> None:
    assert end_of(prompt_of(_core(0.0), "r", 1)).error == "NoWorkers"


def test_a_worker_that_always_says_it_has_another_role_ends_the_request_instead_of_a_loop() -> None:
    cluster = random_cluster(1, prefill=1, decode=1)
    cluster.submit("r", [1, 2, 3], 20)
    worker = cluster.workers["prefill-0"]
    for _ in range(20):
        orders = [message for message in worker.inbox if isinstance(message, Prefill)]
        worker.inbox.clear()
        for _ in orders * 3:  # and says it several times
            cluster.to_router(worker, [RequestFailed("r", "WrongRole", "no")])
        if not cluster.core.live:
            break
    while "r" not in cluster.ended:
        assert cluster.step()
    assert isinstance(cluster.ended["r"].error, WrongRole)
    finish(cluster)
    cluster.check_nothing_is_held()


def test_a_late_refusal_of_an_earlier_worker_does_not_end_the_attempt_that_runs() -> None:
    cluster = random_cluster(1, prefill=2, decode=1)
    request = cluster.submit("r", [1, 2, 3], 20)
    first = cluster.core.requests.live["r"].prefill_worker
    cluster.workers[first].inbox.clear()
    cluster.core.state.cordon(first)
    cluster.to_router(cluster.workers[first], [RequestFailed("r", "WrongRole", "no")])
    while not cluster.shown["r"] or cluster.core.requests.live["r"].phase is Phase.PREFILLING:
        cluster.step()
    assert cluster.core.requests.live["r"].prefill_worker != first
    cluster.to_router(cluster.workers[first], [RequestFailed("r", "InternalError", "late")])
    finish(cluster)
    check_answers(cluster, [request])
