"""A cluster whose router has a process of its own, which can be killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import openai

from baton.builtin_model import CHECKPOINT
from baton.config.process_config import RouterConfig
from baton.deploy.local_ray import free_port
from baton.gateway.build import RunningGateway, start_gateway
from baton.harness.forked import forked
from baton.harness.process_cluster import gateway_plan, plans
from baton.harness.worker_process import work
from baton.logs import set_up
from tests.clients.cluster import CONTEXT_TOKENS, TIMEOUT_S, running_loop


def route(plan: RouterConfig) -> None:
    """Serve as the router until the process is killed."""
    set_up("router")
    from baton.router.build import start_router

    async def serve() -> None:
        await (await start_router(plan)).task

    asyncio.run(serve())


@dataclass(eq=False)
class RestartableRouter:
    """The router's process and the gateway's HTTP address."""

    plan: RouterConfig
    gateway: RunningGateway
    process: Any = field(default=None)

    def client(self, **options: Any) -> openai.OpenAI:
        base_url = f"http://127.0.0.1:{self.gateway.http_port}/v1"
        return openai.OpenAI(base_url=base_url, api_key="none", **options)

    def start(self) -> None:
        """Start a router; workers and gateway register with it by themselves."""
        self.process = forked(route, self.plan, name="router")
        self.process.start()

    def kill(self) -> None:
        """Kill the router."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


@contextmanager
def restartable() -> Iterator[RestartableRouter]:
    """The cluster, with a gateway in this process, once its prefill and its decode worker have registered."""
    router_config, worker_config = plans(CHECKPOINT, CONTEXT_TOKENS, 300, policy="least_loaded")
    router_config = replace(router_config, worker_port=free_port())
    address = f"tcp://127.0.0.1:{router_config.worker_port}"
    names = {"prefill-0": "prefill", "decode-0": "decode"}
    workers = [
        forked(work, replace(worker_config, name=name, role=role, router_address=address), name=name)
        for name, role in names.items()
    ]
    with running_loop() as loop:

        def run(coroutine: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result(TIMEOUT_S)

        gateway = run(start_gateway(gateway_plan(router_config, worker_config, "gateway-0", address)))
        router = RestartableRouter(router_config, gateway)
        try:
            router.start()
            for worker in workers:
                worker.start()
            run(_until_ready(gateway))
            yield router
        finally:
            run(gateway.stop(0.0))
            for process in (router.process, *workers):
                process.kill()
                process.join()


async def _until_ready(gateway: RunningGateway) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not gateway.driver.ready:
            await asyncio.sleep(0.01)
