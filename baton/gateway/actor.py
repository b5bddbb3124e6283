"""The Ray actor that holds a gateway process.

Ray restarts it when it dies, with the same configuration and port and without state. It registers with the router, and
clients resume their streams here or at another gateway.
"""

from __future__ import annotations

import asyncio
import gc
import os
from dataclasses import replace

import ray

from baton.access.persistent_start import start_persistently
from baton.config.process_config import GatewayAddresses, GatewayConfig
from baton.logs import log, set_up
from baton.protocol.address import is_loopback


@ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=64)  # type: ignore[call-overload]
class GatewayActor:
    """A gateway. Its methods run on the event loop of the gRPC server and the links.

    The configured port must be fixed, so that a restarted gateway has the address of the first one.
    """

    def __init__(self, config: GatewayConfig) -> None:
        logging = config.logging
        set_up(config.name, logging.level, log_format=logging.format, access=logging.access)
        if not is_loopback(config.worker_host):  # The command's node may be another
            config = replace(config, worker_host=ray.util.get_node_ip_address())
        self._config = config
        self._ended = asyncio.Event()
        self._started = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> GatewayAddresses | str:
        from baton.gateway.build import start_gateway

        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        gateway = await start_persistently(self._config.name, lambda: start_gateway(self._config), restarted)
        if isinstance(gateway, str):
            return gateway
        self._gateway = gateway
        gc.freeze()  # A full collection of what the process has loaded would stop every stream for 45 ms
        addresses = gateway.addresses
        log.info(f"serving {addresses.words}, workers on {addresses.worker}")
        gateway.task.add_done_callback(self._on_task_ended)
        return addresses

    def _on_task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.error("An error ended the gateway.", exc_info=task.exception())
            os._exit(1)  # A gateway without its task must not look alive

    async def start(self) -> GatewayAddresses | str:
        """Wait until it serves; returns its addresses, or the sentence of the error that prevents it."""
        return await self._started

    async def answers(self) -> bool:
        """True, from the event loop that serves the clients."""
        return True

    async def ended(self) -> None:
        """Wait until the gateway has stopped; if the process ends, the call fails."""
        await self._ended.wait()

    async def stop(self) -> None:
        """End running streams after `gateway.stop_grace_s` and close the server."""
        if not self._started.done():  # A restarted one whose start has failed so far
            self._started.cancel()
        elif not isinstance(self._started.result(), str):
            await self._gateway.stop(self._config.gateway.stop_grace_s)
        self._ended.set()
