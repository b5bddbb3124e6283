"""Signs of life beside the loop: a long step must not look like a dead worker."""

from __future__ import annotations

import threading
import time

from baton.protocol.link_keys import WorkerKeys
from baton.protocol.messages import Alive
from baton.worker.router_link import HEARTBEAT, RouterLink

INTERVAL_S = 0.5
MAX_TURN_S = 60.0  # a loop that does not come round within this hangs: then silence is the truth


class Heartbeat:
    """Speaks for a loop from a thread and a link of its own, while that loop turns."""

    def __init__(self, address: str, name: str, keys: WorkerKeys | None = None) -> None:
        self._link = RouterLink(address, name + HEARTBEAT, keys=keys, one_way=True)
        self._turned_s = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name}-heartbeat", daemon=True)
        self._thread.start()

    def turned(self) -> None:
        """The loop comes round."""
        self._turned_s = time.monotonic()

    def speak_for(self, incarnation: str) -> None:
        """The life of the worker that the router has welcomed; empty: be silent."""
        self._link.incarnation = incarnation

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            if self._link.incarnation and time.monotonic() - self._turned_s < MAX_TURN_S:
                self._link.send([Alive()])
        self._link.close()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
