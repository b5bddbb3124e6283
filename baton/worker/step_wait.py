"""Drives the transport until a launched step has been computed."""

from __future__ import annotations

import time
from typing import Any

from baton.engine.step import Executor
from baton.worker.background_transport import PageTransport

PAUSE_S = 100e-6  # RDMA is given the next writes of a long list this often
TIGHT_S = 0.010
"""How long a step is polled without a pause.

A pause of 100 µs takes 170 µs (Linux adds its timer slack), so the end of a step is seen 85 µs late on average: less
than 1 % of the steps that last longer than this, and not at all for a shorter decode step. A poll takes 2 µs.
"""


def await_step(executor: Executor, launched: Any, transport: PageTransport) -> None:
    """Return when the step is done. Until then transfers progress; a long chunk does not occupy a core.

    Events stay in the transport: handled before the step is collected, they could free pages that the step writes.
    """
    started_s = time.perf_counter()
    while not executor.done(launched):
        transport.progress()
        if time.perf_counter() - started_s > TIGHT_S:
            time.sleep(PAUSE_S)
