"""Clusters whose router or gateways are restarted, and what has to hold in the end."""

from __future__ import annotations

import random

from baton.protocol.errors import WorkerLost
from baton.protocol.request import Request
from baton.simulator.cluster import CLAIM_WITHIN_S
from baton.simulator.stepped_cluster import SteppedCluster
from tests.router.ranks import any_ranks


def random_cluster(
    seed: int, prefill: int = 2, decode: int = 2, mixed: int = 0, duplicates: float = 0.0, gateways: int = 1
) -> SteppedCluster:
    rng = random.Random(seed)
    ends, split = seed % 3 == 0, seed % 2 == 0
    pages, host_pages = rng.choice([14, 20, 30]), seed % 5 * 4
    cluster = SteppedCluster(
        rng,
        pages,
        ends=ends,
        split=split,
        duplicates=duplicates,
        host_pages=host_pages,
        num_gateways=gateways,
        **any_ranks(seed),
    )
    cluster.add_pools(prefill, decode, mixed)
    return cluster


def move_clients(cluster: SteppedCluster, gateway: str, share: float = 0.3) -> None:
    """Some clients lose their connections, and ask this gateway for the rest, which the router learns at once."""
    for request_id in sorted(cluster.requests):
        if cluster.rng.random() < share:
            cluster.go_on(cluster.rng.randint(0, 12))
            if request_id not in cluster.ended:
                cluster.resume(request_id, gateway)
                cluster.exchange(cluster.gateways[gateway])


def replace_gateway(cluster: SteppedCluster, name: str) -> None:
    """The gateway dies and is restarted; its clients ask any gateway for the rest, or (some) never do."""
    incarnation = int(cluster.gateways[name].incarnation)
    lost = cluster.kill_gateway(name)
    cluster.go_on(cluster.rng.randint(0, 20))
    cluster.add_gateway(name, incarnation + 1)
    for request_id in lost:
        cluster.go_on(cluster.rng.randint(0, 12))
        cluster.resume(request_id)


def finish(cluster: SteppedCluster) -> None:
    for worker in cluster.workers.values():
        worker.silent = False
    cluster.settle()
    cluster.now += CLAIM_WITHIN_S + 2.0
    cluster.tick()
    cluster.settle()


def ask_again(cluster: SteppedCluster) -> None:
    """Let everything end; clients ask again whose request was ending when they came back."""
    finish(cluster)
    for request_id in [one for one, end in cluster.ended.items() if isinstance(end.error, WorkerLost)]:
        del cluster.ended[request_id]
        cluster.resume(request_id)
    finish(cluster)


def check_answers(cluster: SteppedCluster, requests: list[Request]) -> None:
    for request in requests:
        assert cluster.ended[request.request_id].error is None
        assert cluster.shown[request.request_id] == cluster.expected(request)
    cluster.check_nothing_is_held()
    assert not cluster.network.writes
    assert len(cluster.core.membership.transfers) == 0
