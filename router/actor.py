"""The Ray actor that holds the router process."""

from __future__ import annotations

import os

import ray

from cluster.errors import BatonError
from cluster.plan import RouterAddresses, RouterPlan


@ray.remote(num_cpus=0, max_restarts=0, max_concurrency=16)  # type: ignore[call-overload]
class RouterActor:
    """The router. Its methods run on one event loop, the gRPC server and the worker links beside them."""

    async def start(self, plan: RouterPlan) -> RouterAddresses | str:
        """Serve; returns where, or the sentence that says why not."""
        from router.assembly import start_router

        try:
            self._router = await start_router(plan)
        except (BatonError, RuntimeError, OSError) as error:
            return f"The router could not start: {error}"
        return self._router.addresses

    async def pid(self) -> int:
        return os.getpid()

    async def lose(self, worker: str) -> None:
        """Told by whoever watches the actors: this worker's process is gone."""
        self._router.driver.lose(worker)

    async def stop(self) -> None:
        await self._router.stop()
