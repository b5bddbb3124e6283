"""One cluster of plain processes for scenarios that kill processes, hold streams or inspect the router."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import baton
from baton.builtin_model import CHECKPOINT
from baton.harness.process_cluster import ProcessCluster, plans

Scenario = Callable[[ProcessCluster, baton.AsyncClient], Awaitable[Any]]
Play = Callable[[Scenario], Any]
TIMEOUT_S = 120.0


@contextmanager
def playing() -> Iterator[Play]:
    """Runs scenarios on a router with 1 + 2 workers; each must leave all three registered and idle."""
    with asyncio.Runner() as runner:
        router_config, worker_config = plans(
            CHECKPOINT, 1024, 600, policy="least_loaded", chunk_tokens=128, max_batch=32
        )
        cluster = ProcessCluster(router_config, worker_config, {"prefill": 1, "decode": 2})
        runner.run(cluster.__aenter__())

        async def play(scenario: Scenario) -> Any:
            async with baton.AsyncClient(cluster.address) as client:
                seen = await scenario(cluster, client)
            core = cluster.router.driver.core
            await cluster.until(lambda: not core.live)
            await cluster.until(lambda: not any(view.load.pages_in_use for view in core.state.workers.values()))
            assert len(core.membership.transfers) == 0
            assert len(core.state.workers) == 3
            return seen

        try:
            yield lambda scenario: runner.run(asyncio.wait_for(play(scenario), TIMEOUT_S))
        finally:
            runner.run(cluster.__aexit__())


async def kill(cluster: ProcessCluster, name: str) -> None:
    """Kill the process and report its death to the router, as its supervisor would."""
    os.kill(cluster.processes[name].pid, signal.SIGKILL)
    await asyncio.to_thread(cluster.processes[name].join)
    cluster.router.driver.lose(name)


async def start_again(cluster: ProcessCluster, name: str) -> None:
    """Start the worker again, as a new incarnation."""
    cluster.spawn(name, name.split("-")[0])
    await cluster.until(lambda: name in cluster.router.driver.core.state.workers)
