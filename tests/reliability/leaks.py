"""The leak check of all runs: what workers hold against what live requests account for (`baton doctor leaks`)."""

from __future__ import annotations

import asyncio
import time

import baton
from baton.client.errors import BatonError
from baton.protocol.v1 import admin_pb2

CHECK_S = 2.0
SETTLE_S = 60.0
POLL_S = 0.1


def leaked(check: admin_pb2.PageCheck, at_rest: bool = False) -> int:
    """Pages, requests and handoffs that no live request accounts for; of a cluster at rest, everything that is held.

    Raises `ValueError` when a worker sent no report during the check, which is then inconclusive.
    """
    silent = [one.name for one in check.workers if not one.reported]
    if silent:
        raise ValueError(f"The leak check is inconclusive: no report from {', '.join(silent)}.")
    pages = sum(one.pages_in_use if at_rest else one.pages_leaked for one in check.workers)
    requests = sum(len(one.unknown) for one in check.workers) + (check.live_requests if at_rest else 0)
    return pages + requests + len(check.lost_handoffs)


async def check_pages(admin_address: str, seconds: float = CHECK_S) -> admin_pb2.PageCheck:
    """Watch a cluster, at work or at rest, for at least a second."""

    def check() -> admin_pb2.PageCheck:
        with baton.Admin(admin_address) as admin:
            return admin.check_pages(seconds)

    return await asyncio.to_thread(check)


async def leaked_at_rest(admin_address: str, num_workers: int) -> int:
    """What is held after the last answer, once all workers are registered.

    Waits up to `SETTLE_S` for a cluster that holds nothing. Raises `TimeoutError` when a worker is missing after that.
    """
    end_s = time.monotonic() + SETTLE_S
    while (state := await asyncio.to_thread(_state, admin_address)) != (num_workers, 0):
        if time.monotonic() > end_s:
            if state is None or state[0] != num_workers:
                raise TimeoutError(f"{num_workers} workers should be registered after {SETTLE_S:g} s, not {state}.")
            break
        await asyncio.sleep(POLL_S)
    return leaked(await check_pages(admin_address), at_rest=True)


def _state(admin_address: str) -> tuple[int, int] | None:
    """(registered workers, live requests and held pages); None while the router does not answer."""
    try:
        with baton.Admin(admin_address) as admin:
            cluster = admin.cluster()
    except BatonError:
        return None
    workers = [worker for pool in cluster.pools for worker in pool.workers]
    return len(workers), cluster.live_requests + sum(worker.pages_in_use for worker in workers)
