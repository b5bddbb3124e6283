"""The router's end of the ZeroMQ links: one ROUTER socket for all workers, on the event loop.

The loop watches the socket's file descriptor, so a frame costs no future and no task switch. ZeroMQ signals that
descriptor once per change, and a send may consume the signal, so both directions check for received frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable

import zmq

from baton.links.log_rate_limit import LogRateLimit
from baton.links.zap_authenticator import ZapAuthenticator
from baton.logs import log
from baton.protocol.address import is_ipv6, split
from baton.protocol.codec import decode_to_router, encode_to_worker
from baton.protocol.errors import InvalidRequest
from baton.protocol.link_keys import RouterKeys
from baton.protocol.messages import RouterMessage, WorkerMessage

HEARTBEAT = "#alive"  # suffix of the name under which a worker's heartbeat connects
PING_MS, SILENCE_MS = 1000, 5000  # Interval of pings; time without traffic after which a connection is closed
MAX_FRAME_BYTES = 64 << 20  # ZeroMQ disconnects a peer that sends a larger frame
Handler = Callable[[str, str, list[WorkerMessage]], None]  # (worker, incarnation, messages)


class WorkerLink:
    """Frames from and to workers. A socket's identity is its worker's name; frames of a worker stay in order."""

    def __init__(self, address: str, keys: RouterKeys | None = None) -> None:
        """Bind to `address`, such as "tcp://127.0.0.1:*"; the attribute `address` then has the port.

        With `keys` only workers with the matching keys can connect, and every frame is encrypted.
        """
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # A restarted worker takes over its name
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # A message that cannot be queued is an error, not lost
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, PING_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
        self._socket.setsockopt(zmq.IPV6, int(is_ipv6(split(address)[0])))
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._authenticator = ZapAuthenticator(self._context, self._socket, keys) if keys is not None else None
        self._socket.bind(address)
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handler: Handler | None = None
        self._log_limit = LogRateLimit()

    def start(self, handler: Handler) -> None:
        """Call `handler` on the running event loop with every received frame.

        A handler refuses a frame by raising `InvalidRequest`, which is logged.
        """
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        if self._authenticator is not None:
            self._authenticator.start()
        self._loop.add_reader(self._socket.fileno(), self._drain)
        self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        while not self._socket.closed:
            try:
                identity, frame = self._socket.recv_multipart(zmq.NOBLOCK, copy=True)
            except zmq.Again:
                return
            except ValueError:
                continue  # Invalid: not two parts
            try:
                incarnation, batch = decode_to_router(frame)
                if self._handler is not None:
                    self._handler(identity.decode().removesuffix(HEARTBEAT), incarnation, batch)
            except (InvalidRequest, UnicodeDecodeError) as error:
                line = self._log_limit.line(f"A frame from worker {identity!r} was ignored: {error}", time.monotonic())
                if line is not None:
                    log.warning(line)

    def send(self, worker: str, batch: Iterable[RouterMessage]) -> bool:
        """Queue messages for a worker as one frame, without waiting.

        Returns whether they were queued; they are not if the worker is disconnected or its queue is full.
        """
        queued = False
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart([worker.encode(), encode_to_worker(list(batch))], zmq.NOBLOCK)
            queued = True
        if self._loop is not None and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._drain)
        return queued

    def close(self) -> None:
        """Close the socket and its connections."""
        if self._loop is not None and not self._socket.closed:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self._authenticator is not None:
            self._authenticator.close()
        self._context.term()
