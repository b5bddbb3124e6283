"""The worker's end of the ZeroMQ link to the router: one DEALER socket, owned by the worker's loop."""

from __future__ import annotations

import zmq
from zmq.utils.monitor import recv_monitor_message

from baton.logs import log
from baton.protocol.address import is_ipv6, split
from baton.protocol.codec import decode_to_worker, encode_to_router
from baton.protocol.errors import InvalidRequest
from baton.protocol.link_keys import WorkerKeys
from baton.protocol.messages import Reregister, RouterMessage, WorkerMessage

HEARTBEAT = "#alive"  # suffix of a worker's name in the identity of its heartbeat's link
UNSENT_FRAMES = 2_000  # queued while the router is away; beyond that the worker re-registers
PING_MS, SILENCE_MS = 1000, 5000  # a connection without traffic for so long is closed
CONNECT_MS = 2000  # timeout of an attempt to connect


class RouterLink:
    """First in, first out in both directions, and complete as long as the connection lasts.

    ZeroMQ reconnects by itself, but frames in flight may be lost then, in both directions. So a worker whose
    connection broke has to re-register: `receive` returns the same message that the router would send.
    """

    def __init__(
        self,
        address: str,
        identity: str,
        incarnation: str = "",
        keys: WorkerKeys | None = None,
        one_way: bool = False,
    ) -> None:
        """`one_way`: `receive` is never called."""
        self.incarnation = incarnation
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, identity.encode())
        self._socket.setsockopt(zmq.IPV6, int(is_ipv6(split(address)[0])))
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.SNDHWM, UNSENT_FRAMES)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, PING_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
        if keys is not None:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.router_public.encode())
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        self._breaks: zmq.Socket[bytes] | None = None
        if not one_way:
            self._breaks = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._connected = False
        self._socket.connect(address)
        # Wakes a loop that waits for messages from another thread; ZeroMQ sockets may not be shared.
        self._wake_address = f"inproc://wake-{identity}"
        self._waker = self._context.socket(zmq.PAIR)
        self._waker.bind(self._wake_address)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._waker, zmq.POLLIN)
        if self._breaks is not None:
            self._poller.register(self._breaks, zmq.POLLIN)

    def receive(self, wait_s: float) -> list[RouterMessage]:
        """The received messages, waiting up to `wait_s` for the first; empty after a `wake`."""
        ready = dict(self._poller.poll(int(wait_s * 1000))) if wait_s > 0 else None
        if ready is not None and self._waker in ready:
            self._waker.recv()
        messages: list[RouterMessage] = [Reregister(self.incarnation, "")] if self._has_broken() else []
        if ready is not None and self._socket not in ready:
            return messages
        while True:
            try:
                messages += decode_to_worker(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return messages
            except InvalidRequest as error:
                log.warning(f"A frame from the router was ignored: {error.message}")

    def _has_broken(self) -> bool:
        """Whether an established connection has ended since the last call."""
        broken = False
        while self._breaks is not None and self._breaks.poll(0):
            connected = recv_monitor_message(self._breaks)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            broken |= self._connected and not connected
            self._connected = connected
        return broken

    def send(self, batch: list[WorkerMessage]) -> bool:
        """Queue messages as one frame; never waits. False: the router has been away for too many frames."""
        try:
            self._socket.send(encode_to_router(batch, self.incarnation), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def wake(self) -> None:
        """Make a waiting `receive` return; may be called from any thread."""
        with self._context.socket(zmq.PAIR) as socket:
            socket.connect(self._wake_address)
            socket.send(b"")

    def close(self) -> None:
        """Deliver what is queued (half a second at most) and close."""
        self._waker.close()
        if self._breaks is not None:
            self._socket.disable_monitor()
            self._breaks.close(0)
        self._socket.close()
        self._context.term()
