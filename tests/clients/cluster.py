"""A cluster whose event loop runs in a thread, for clients that block or have a loop of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import openai

from baton.builtin_model import CHECKPOINT
from baton.config.schema import AccessSection
from baton.harness.process_cluster import ProcessCluster, plans

CONTEXT_TOKENS = 1024
MODEL = "measured"
TIMEOUT_S = 60.0
T = TypeVar("T")


@dataclass(eq=False)
class Served:
    """A running cluster, seen from other threads than its own."""

    cluster: ProcessCluster
    loop: asyncio.AbstractEventLoop
    address: str = field(init=False)  # Of its HTTP API

    def __post_init__(self) -> None:
        self.address = self.cluster.http_address

    def client(self, api_key: str = "none", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://{self.address}/v1", api_key=api_key, **options)

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"http://{self.address}/v1", api_key="none", **options)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine in the cluster's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT_S)

    def read(self, function: Callable[[ProcessCluster], T]) -> T:
        """What a function finds in the cluster, called in its loop."""

        async def call() -> T:
            return function(self.cluster)

        return self.run(call())

    def seconds_until(self, condition: Callable[[ProcessCluster], bool]) -> float:
        """Wait for a condition of the cluster; raises `TimeoutError`."""
        started_s = time.monotonic()
        self.run(self.cluster.until(lambda: condition(self.cluster), TIMEOUT_S))
        return time.monotonic() - started_s

    def kill(self, name: str) -> None:
        """Kill a worker and report its death to the router, as its supervisor would."""
        process = self.cluster.processes[name]
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        self.read(lambda cluster: cluster.router.driver.lose(name))


@contextmanager
def serve(
    pools: dict[str, int],
    policy: str = "least_loaded",
    access: AccessSection | None = None,
    checkpoint: Path = CHECKPOINT,
) -> Iterator[Served]:
    """A cluster of this model; at the end no page may be held."""
    with running_loop() as loop:
        router_config, worker_config = plans(checkpoint, CONTEXT_TOKENS, 600, policy=policy, chunk_tokens=128)
        router_config = replace(router_config, access=access or AccessSection())
        cluster = ProcessCluster(router_config, worker_config, pools)
        asyncio.run_coroutine_threadsafe(cluster.__aenter__(), loop).result(TIMEOUT_S)
        served = Served(cluster, loop)
        try:
            yield served
            served.run(cluster.until_idle())
        finally:
            served.run(cluster.__aexit__())


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def pages_in_use(cluster: ProcessCluster) -> dict[str, int]:
    """By worker, as last reported."""
    return {name: view.load.pages_in_use for name, view in cluster.router.driver.core.state.workers.items()}
