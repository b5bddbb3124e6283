"""The time of a call."""

from __future__ import annotations

import time
from collections.abc import Callable


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
