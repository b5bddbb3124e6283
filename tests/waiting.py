"""Waiting for a condition that only looking can show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


def until(condition: Callable[[], bool], timeout_s: float = 20.0, otherwise: str = "it did not happen") -> None:
    """Look until `condition` holds; AssertionError with the sentence `otherwise` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{otherwise} within {timeout_s:g} s"
        time.sleep(0.05)


async def until_async(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """`until` for a test that runs an event loop; TimeoutError after `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def step_until(step: Callable[[], object], condition: Callable[[], object], most: int = 5000) -> None:
    """Advance a virtual cluster until `condition` holds; AssertionError after `most` steps."""
    for _ in range(most):
        if condition():
            return
        step()
    raise AssertionError(f"not within {most} steps")
