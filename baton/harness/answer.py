"""One request at a gateway of this process, without a client's connection."""

from __future__ import annotations

import time
from dataclasses import replace

from baton.gateway.core.commands import StreamEnd
from baton.gateway.driver import GatewayDriver
from baton.protocol.errors import Cancelled
from baton.protocol.request import Request


async def answer(driver: GatewayDriver, request: Request) -> tuple[list[float], StreamEnd]:
    """The moments of its tokens (of `time.perf_counter`) and its end; raises the request's error."""
    subscription = driver.open(replace(request, arrival_s=driver.clock()))
    moments: list[float] = []
    try:
        while True:
            tokens, end = await subscription.next()
            moments += [time.perf_counter()] * len(tokens)
            if end is not None:
                if end.error is not None:
                    raise end.error
                return moments, end
    finally:
        driver.close(subscription, Cancelled("The reader has left."))
