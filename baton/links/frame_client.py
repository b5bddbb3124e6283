"""The end of a link that connects: one ZeroMQ DEALER socket, read by a poller or on the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from baton.links.keys import link_identity
from baton.links.log_rate_limit import LogRateLimit
from baton.links.socket_reader import SocketReader
from baton.logs import log
from baton.protocol.address import is_ipv6, split
from baton.protocol.codec import decode_frame, encode_frame
from baton.protocol.errors import InvalidRequest
from baton.protocol.link_keys import PeerKeys

NOBLOCK, POLLIN = int(zmq.NOBLOCK), int(zmq.POLLIN)
UNSENT_FRAMES = 2_000  # Queued while the server is away or slow; the next frame is not taken
PING_MS, SILENCE_MS = 1000, 5000  # Interval of pings; time without traffic after which a connection is closed
CONNECT_MS = 2000  # Limit of an attempt to connect
LINGER_MS = 500  # After `close`, for what is queued
Handler = Callable[[list[bool], list[Any]], None]  # What `FrameClient.receive` returns


class FrameClient:
    """First in, first out in both directions, and complete as long as the connection lasts.

    ZeroMQ reconnects by itself, but frames in flight may be lost then, in both directions; so `receive` reports each
    change of the connection. Frames queued while the server is away are sent after the next handshake.
    """

    def __init__(
        self,
        address: str,
        name: str,
        kinds: Collection[type],
        incarnation: str = "",
        keys: PeerKeys | None = None,
        server_key: str = "",
        one_way: bool = False,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        """Connect to `address` as `name`; `kinds` are the messages that the server may send.

        With `keys`, this process's own, frames are encrypted, and the server must have the key pair of `server_key`
        ("": of the router). `one_way`: `receive` is never called. Clients may share a `context`, which its owner ends.
        """
        self.incarnation = incarnation  # Sent with each frame
        self._kinds = kinds
        self._owns_context = context is None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context() if context is None else context
        self._socket = self._context.socket(zmq.DEALER)
        server_key = server_key or (keys.router_public if keys is not None else "")
        self._socket.setsockopt(zmq.IDENTITY, link_identity(name, keys, server_key, one_way))
        self._socket.setsockopt(zmq.IPV6, int(is_ipv6(split(address)[0])))
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, UNSENT_FRAMES)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, PING_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
        if keys is not None:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, server_key.encode())
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        self._monitor: zmq.Socket[bytes] | None = None
        if not one_way:
            self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._connected = False
        self._readers: list[SocketReader] = []
        self._handler: Handler | None = None
        self._log_limit = LogRateLimit()
        self._socket.connect(address)

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """The sockets for a poller: `receive` has something as soon as it can read from either."""
        return [self._socket] if self._monitor is None else [self._socket, self._monitor]

    def start(self, handler: Handler) -> None:
        """Call `handler` on the running event loop with what `receive` returns, whenever there is anything."""
        self._handler = handler
        self._readers = [SocketReader(socket, self._deliver) for socket in self.sockets]
        for reader in self._readers:
            reader.start()

    def _deliver(self) -> None:
        changes, batch = self.receive()
        if self._handler is not None and (changes or batch):
            self._handler(changes, batch)

    def receive(self) -> tuple[list[bool], list[Any]]:
        """The changes of the connection since the last call (True: it is up), and the messages; never waits.

        Messages may have arrived before a change.
        """
        changes = self._changes()
        messages: list[Any] = []
        while not self._socket.closed:
            try:
                frame = self._socket.recv(NOBLOCK)
            except zmq.Again:
                break
            try:
                messages += decode_frame(frame, self._kinds)[1]
            except InvalidRequest as error:
                line = self._log_limit.line(f"A frame was ignored: {error.message}", time.monotonic())
                if line is not None:
                    log.warning(line)
        return changes, messages

    def _changes(self) -> list[bool]:
        changes = []
        while self._monitor is not None and int(self._monitor.getsockopt(zmq.EVENTS)) & POLLIN:
            connected = recv_monitor_message(self._monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if connected != self._connected:
                changes.append(connected)
            self._connected = connected
        return changes

    def send(self, batch: Iterable[Any]) -> bool:
        """Queue messages as one frame; never waits. False: too many frames are queued, and this one is not."""
        try:
            self._socket.send(encode_frame(batch, self.incarnation), NOBLOCK)
        except zmq.Again:
            return False
        finally:
            if self._readers:
                self._readers[0].after_send()
        return True

    def close(self) -> None:
        """Close; queued frames are sent for half a second at most, and with a context of its own this waits for it."""
        for reader in self._readers:
            reader.stop()
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._monitor = None
        self._socket.close()
        if self._owns_context:
            self._context.term()
