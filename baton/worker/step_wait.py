"""The time until a launched step has been computed: the transport's."""

from __future__ import annotations

import time
from typing import Any

from baton.engine.step import Executor
from baton.kv_transfer.transport import Transport

PAUSE_S = 100e-6  # RDMA is given the next writes of a long list this often
TIGHT_S = 0.010
"""For so long a step is looked for without a pause.

A pause of 100 µs takes 170 µs (Linux adds its timer slack), so the end of a step is seen 85 µs late in the mean: less
than 1 % of the steps that last longer than this, and nothing of a decode step below. A look and a poll take 2 µs.
"""


def await_step(executor: Executor, launched: Any, transport: Transport) -> None:
    """Return when the step is done. Until then pages go on to peers, and a chunk of 250 ms takes no core for itself.

    What the transport brings stays in it: heard before the step is collected, it could free pages that the step writes.
    """
    started_s = time.perf_counter()
    while not executor.done(launched):
        transport.progress()
        if time.perf_counter() - started_s > TIGHT_S:
            time.sleep(PAUSE_S)
