"""Heartbeats outside the loop, so that a long step does not look like a dead worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from baton.links.frame_client import FrameClient
from baton.protocol.link_keys import PeerKeys
from baton.protocol.session_messages import Alive

INTERVAL_S = 0.5
MAX_TURN_S = 60.0  # a loop whose turn takes longer hangs: no more heartbeats


class Heartbeat:
    """Sends heartbeats for a loop, from its own thread and link, while the loop turns and `healthy` is true."""

    def __init__(
        self, address: str, name: str, keys: PeerKeys | None = None, healthy: Callable[[], bool] = lambda: True
    ) -> None:
        self._link = FrameClient(address, name, (), keys=keys, one_way=True)
        self._healthy = healthy
        self._turned_s = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name}-heartbeat", daemon=True)
        self._thread.start()

    def turned(self, incarnation: str) -> None:
        """The loop has completed a turn, as this incarnation; empty: send no heartbeats."""
        self._turned_s = time.monotonic()
        self._link.incarnation = incarnation

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            turns = time.monotonic() - self._turned_s < MAX_TURN_S
            if self._link.incarnation and turns and self._healthy():
                self._link.send([Alive()])
        self._link.close()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
