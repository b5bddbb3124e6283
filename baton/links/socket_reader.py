"""Reads a ZeroMQ socket on the event loop, so that a frame costs no future and no task switch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq

POLLIN = int(zmq.POLLIN)


class SocketReader:
    """Calls `drain`, which receives until nothing is left, whenever the socket may have received something.

    The loop watches the socket's file descriptor. ZeroMQ signals it once per change, and a send may consume the signal.
    """

    def __init__(self, socket: zmq.Socket[bytes], drain: Callable[[], None]) -> None:
        self._socket = socket
        self._drain = drain
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading = False

    def start(self) -> None:
        """Read on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._loop.call_soon(self._read)

    def after_send(self) -> None:
        """Look for received frames; call it after each send."""
        if self._reading or self._loop is None:
            return  # `drain` looks before it returns
        if int(self._socket.getsockopt(zmq.EVENTS)) & POLLIN:
            self._loop.call_soon(self._read)

    def stop(self) -> None:
        """Stop reading; the socket is closed next."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())

    def _read(self) -> None:
        if self._socket.closed:
            return
        self._reading = True
        try:
            self._drain()
        except Exception:
            if self._loop is not None:
                self._loop.call_soon(self._read)  # The frames behind the one that failed have no signal of their own
            raise
        finally:
            self._reading = False
