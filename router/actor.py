"""The Ray actor that holds the router process.

Ray restarts it when it dies, with the same configuration, keys and ports and without state. Workers and gateways
register again with what they hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import ray

from baton.access.persistent_start import start_persistently
from baton.config.process_config import RouterAddresses, RouterConfig
from baton.config.ray_names import GATEWAY, NAMESPACE, ROUTER
from baton.links.keys import peer_keys
from baton.logs import log, set_up
from baton.protocol.link_keys import PeerKeys

ANSWER_WITHIN_S = 3.0  # A gateway whose event loop turns


@ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=64)  # type: ignore[call-overload]
class RouterActor:
    """The router. Its methods run on the event loop of the gRPC server and the link.

    `prefix` begins the names of the cluster's actors. The configured ports must be fixed, so that a restarted router
    has the addresses of the first one.
    """

    def __init__(self, config: RouterConfig, prefix: str = "") -> None:
        set_up(ROUTER, config.logging.level, log_format=config.logging.format)
        self._config, self._prefix = config, prefix
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._started = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> RouterAddresses | str:
        from baton.router.build import start_router

        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        router = await start_persistently("The router", lambda: start_router(self._config), restarted)
        if isinstance(router, str):
            return router
        self._router = router
        gc.freeze()  # A full collection of what the process has loaded would stop every request for a while
        addresses = router.addresses
        log.info(f"serving workers and gateways on {addresses.worker}, administration on {addresses.words}")
        router.driver.on_registered = self._watch
        router.driver.on_kill = self._kill
        return addresses

    async def start(self) -> RouterAddresses | str:
        """Wait until it serves; returns its addresses, or the sentence of the error that prevents it."""
        return await self._started

    async def peer_keys(self, name: str) -> PeerKeys | None:
        """The keys of the worker or gateway `name`; None if links are open."""
        secret = self._config.link_secret
        return peer_keys(secret, name) if secret else None

    def _watch(self, name: str) -> None:
        """Report the end of a worker's or gateway's process to the driver at once."""
        before = self._watches.get(name)
        if before is None or before.done():
            self._watches[name] = asyncio.get_running_loop().create_task(self._until_it_ends(name))

    async def _until_it_ends(self, name: str) -> None:
        try:
            actor = await asyncio.to_thread(ray.get_actor, self._prefix + name, NAMESPACE)
            await actor.ended.remote()
        except ValueError:
            return  # Not an actor of this cluster: only missing messages show its end
        except ray.exceptions.RayActorError as error:
            log.warning(f"{name} has died: {str(error).splitlines()[0]}")
        self._router.driver.lose(name)

    def _kill(self, name: str) -> None:
        asyncio.get_running_loop().create_task(asyncio.to_thread(self._end_process, name))

    def _end_process(self, name: str) -> None:
        """Kill a worker or a gateway; not a gateway that answers Ray: its link is cut, but its streams may go on."""
        with contextlib.suppress(ValueError):
            actor = ray.get_actor(self._prefix + name, NAMESPACE)
            if name.startswith(f"{GATEWAY}-") and _answers(actor):
                log.warning(f"{name} cannot reach the router, but its process answers")
                return
            log.warning(f"{name} sends nothing and does not come back: killing its process")
            ray.kill(actor, no_restart=False)

    async def stop(self) -> None:
        """Close the server and the link."""
        if not self._started.done():  # A restarted one whose start has failed so far
            self._started.cancel()
        elif not isinstance(self._started.result(), str):
            await self._router.stop()


def _answers(gateway: Any) -> bool:
    """Whether a gateway's event loop turns."""
    try:
        return bool(ray.get(gateway.answers.remote(), timeout=ANSWER_WITHIN_S))
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
        return False
