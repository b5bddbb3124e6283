"""The Ray actor that holds the router process.

Ray restarts it when it dies: same plan, same ports, no state. Workers re-register, and
clients resume their streams.
"""

from __future__ import annotations

import asyncio
import contextlib

import ray

from baton.config.plan import RouterAddresses, RouterPlan
from baton.config.ray_names import NAMESPACE, ROUTER
from baton.logs import log, set_up
from baton.protocol.errors import BatonError
from baton.protocol.link_keys import WorkerKeys


@ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=64)  # type: ignore[call-overload]
class RouterActor:
    """The router. Its methods run on one event loop, the gRPC servers and the worker links beside them.

    `prefix` stands before the names of the cluster's actors; the plan's ports must be fixed ones, so that a restarted
    router is found where the first one was.
    """

    def __init__(self, plan: RouterPlan, worker_keys: WorkerKeys, prefix: str = "") -> None:
        set_up(ROUTER, plan.logging.level)
        self._plan, self._worker_keys, self._prefix = plan, worker_keys, prefix
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._started = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> RouterAddresses | str:
        from baton.router.assembly import start_router

        try:
            self._router = await start_router(self._plan)
        except (BatonError, RuntimeError, OSError) as error:
            log.error(f"The router could not start: {error}")
            return f"The router could not start: {error}"
        addresses = self._router.addresses
        log.info(f"serving gRPC on {addresses.public}, administration on {addresses.admin}")
        self._router.driver.on_welcome = self._watch
        self._router.driver.on_kill = self._kill
        return addresses

    async def start(self) -> RouterAddresses | str:
        """Wait until it serves; returns its addresses, or one sentence why it cannot."""
        return await self._started

    async def worker_keys(self) -> WorkerKeys:
        """What a worker needs to connect."""
        return self._worker_keys

    def _watch(self, worker: str) -> None:
        """Report the end of the worker's process at once."""
        before = self._watches.get(worker)
        if before is None or before.done():
            self._watches[worker] = asyncio.get_running_loop().create_task(self._until_it_ends(worker))

    async def _until_it_ends(self, worker: str) -> None:
        try:
            actor = await asyncio.to_thread(ray.get_actor, self._prefix + worker, NAMESPACE)
            await actor.ended.remote()
        except ValueError:
            return  # not an actor of ours: its silence is the only signal
        except ray.exceptions.RayActorError as error:
            log.warning(f"{worker} has died: {str(error).splitlines()[0]}")
        self._router.driver.lose(worker)

    def _kill(self, worker: str) -> None:
        asyncio.get_running_loop().create_task(asyncio.to_thread(self._end_process, worker))

    def _end_process(self, worker: str) -> None:
        log.warning(f"{worker} is silent and does not come back: its process is ended")
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(self._prefix + worker, NAMESPACE), no_restart=False)

    async def stop(self) -> None:
        if not isinstance(await self._started, str):
            await self._router.stop(self._plan.router.stop_grace_s)
