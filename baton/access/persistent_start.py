"""The start of an actor's server, which is repeated until it succeeds if Ray has restarted the actor.

The command that creates an actor waits for its start and shows why it failed. Nothing waits for a restarted one, whose
port may still be taken for a moment: it would live without serving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from baton.logs import log
from baton.protocol.errors import BatonError

PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0  # Between two attempts: this long at first, then twice as long each time

Started = TypeVar("Started")


async def start_persistently(
    name: str, start: Callable[[], Awaitable[Started]], repeat: bool, pause_s: float = PAUSE_S
) -> Started | str:
    """The result of `start`, or the sentence of the error that prevents it; `repeat`: another attempt instead.

    Each change of the reason is logged once.
    """
    logged = ""
    while True:
        try:
            return await start()
        except (BatonError, RuntimeError, OSError) as error:
            sentence = f"{name} could not start: {error}"
        if sentence != logged:
            log.error(sentence)
            logged = sentence
        if not repeat:
            return sentence
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
