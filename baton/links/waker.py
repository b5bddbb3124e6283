"""Wakes a thread that waits in a ZeroMQ poller."""

from __future__ import annotations

import contextlib
import os
import threading


class Waker:
    """A file descriptor for the poller, readable after `wake` until `clear`."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        self._lock = threading.Lock()
        self._closed = False

    def fileno(self) -> int:
        """The descriptor to register with the poller."""
        return self._reading

    def wake(self) -> None:
        """Make the poller return; may be called from any thread, and after `close`."""
        with self._lock, contextlib.suppress(BlockingIOError):  # Raised if it is readable already
            if not self._closed:
                os.write(self._writing, b"\0")

    def clear(self) -> None:
        """Wait for the next `wake` again."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reading, 4096):
                pass

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            self._closed = True
            os.close(self._reading)
            os.close(self._writing)
