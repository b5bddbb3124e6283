"""Reads long bodies in a thread: the longest take most of a second, in which streams go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

LONG_BYTES = 64 << 10  # Most bodies of this size take about a millisecond
T = TypeVar("T")


async def parsed(parse: Callable[..., T], body: bytes, *more: object) -> T:
    """`parse(body, *more)`."""
    if len(body) <= LONG_BYTES:
        return parse(body, *more)
    return await asyncio.to_thread(parse, body, *more)
