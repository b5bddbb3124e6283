"""The Ray actor that holds the router process."""

from __future__ import annotations

import os

import ray

from cluster.errors import BatonError
from cluster.plan import RouterPlan


@ray.remote(num_cpus=0, max_restarts=0, max_concurrency=16)  # type: ignore[call-overload]
class RouterActor:
    """The router. Its methods run on one event loop, the gRPC server and the worker links beside them."""

    async def start(self, plan: RouterPlan) -> tuple[str, int, str]:
        """Serve; returns (worker link address, gRPC port, error sentence), the latter empty when all is well."""
        from router.assembly import start_router

        try:
            self._router = await start_router(plan)
        except (BatonError, RuntimeError, OSError) as error:
            return "", 0, f"The router could not start on {plan.host}:{plan.port}: {error}"
        return self._router.worker_address, self._router.port, ""

    async def pid(self) -> int:
        return os.getpid()

    async def lose(self, worker: str) -> None:
        """Told by whoever watches the actors: this worker's process is gone."""
        self._router.driver.lose(worker)

    async def stop(self) -> None:
        await self._router.stop()
