"""A gateway in a process of its own, without Ray."""

from __future__ import annotations

import gc
from collections.abc import Callable
from multiprocessing.connection import Connection

import uvloop

from baton.config.process_config import GatewayConfig
from baton.logs import set_up


def serve_clients(plan: GatewayConfig, served: Connection, first: Callable[[], None] | None = None) -> None:
    """Serve until the process is killed. Sends the gateway's address once the router has registered it.

    `first` is called before anything else.
    """
    if first is not None:
        first()
    set_up(plan.name, plan.logging.level, log_format=plan.logging.format, access=plan.logging.access)
    from baton.gateway.build import start_gateway

    async def serve() -> None:
        gateway = await start_gateway(plan)
        gc.freeze()  # As its actor does
        await gateway.registered()
        served.send(gateway.addresses.public)
        await gateway.task

    uvloop.run(serve())  # As Ray runs its actors
