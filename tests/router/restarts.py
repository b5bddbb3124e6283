"""Clusters whose router is restarted, and what has to hold in the end."""

from __future__ import annotations

import random

from baton.protocol.request import Request
from baton.simulator.cluster import CLAIM_WITHIN_S
from baton.simulator.stepped_cluster import SteppedCluster


def random_cluster(
    seed: int, prefill: int = 2, decode: int = 2, mixed: int = 0, duplicates: float = 0.0
) -> SteppedCluster:
    rng = random.Random(seed)
    ends, split = seed % 3 == 0, seed % 2 == 0
    pages, host_pages = rng.choice([14, 20, 30]), seed % 5 * 4
    cluster = SteppedCluster(rng, pages, ends=ends, split=split, duplicates=duplicates, host_pages=host_pages)
    cluster.add_pools(prefill, decode, mixed)
    return cluster


def resume_all(cluster: SteppedCluster) -> None:
    """Every client asks for the rest, some at once and some when workers have joined."""
    waiting = [request_id for request_id in cluster.requests if request_id not in cluster.ended]
    cluster.rng.shuffle(waiting)
    for request_id in waiting:
        cluster.go_on(cluster.rng.randint(0, 12))
        cluster.resume(request_id)


def finish(cluster: SteppedCluster) -> None:
    for worker in cluster.workers.values():
        worker.silent = False
    cluster.settle()
    cluster.now += CLAIM_WITHIN_S + 2.0
    cluster.tick()
    cluster.settle()


def check_answers(cluster: SteppedCluster, requests: list[Request]) -> None:
    for request in requests:
        assert cluster.ended[request.request_id].error is None
        assert cluster.shown[request.request_id] == cluster.expected(request)
    cluster.check_nothing_is_held()
    assert not cluster.network.writes
    assert len(cluster.core.membership.transfers) == 0
