"""The end of links that many peers connect to: one ZeroMQ ROUTER socket on the event loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import zmq

from baton.links.keys import ONE_WAY, identity_name
from baton.links.log_rate_limit import LogRateLimit
from baton.links.socket_reader import SocketReader
from baton.links.zap_authenticator import KEY_PROPERTY, ZapAuthenticator
from baton.logs import log
from baton.protocol.address import is_ipv6, split
from baton.protocol.codec import decode_frame, encode_frame
from baton.protocol.errors import InvalidRequest
from baton.protocol.link_keys import PeerKeys

PING_MS, SILENCE_MS = 1000, 5000  # Interval of pings; time without traffic after which a connection is closed
NOBLOCK, MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK) | int(zmq.SNDMORE)  # `send_multipart` computes them each time
MAX_FRAME_BYTES = 64 << 20  # ZeroMQ disconnects a peer that sends a larger frame
Handler = Callable[[str, str, list[Any]], None]  # (peer, incarnation, messages)


def no_key(name: str) -> str:
    """The public key of a peer while no peer is accepted."""
    return ""


class FrameServer:
    """Frames from and to peers by their names; the frames of a peer stay in order while its connection lasts."""

    def __init__(
        self,
        address: str,
        kinds: Collection[type],
        key_of: Callable[[str], str] = no_key,
        keys: PeerKeys | None = None,
    ) -> None:
        """Bind to `address`, such as "tcp://127.0.0.1:*"; the attribute `address` then has the port.

        `kinds` are the messages that peers may send. With `keys`, this process's own, all frames are encrypted, and
        those of a peer are accepted only under the public key that `key_of` has for its name ("": none).
        """
        self._kinds, self._key_of = kinds, key_of
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # A restarted peer takes over its identity
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # A message that cannot be queued is an error, not lost
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, PING_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
        self._socket.setsockopt(zmq.IPV6, int(is_ipv6(split(address)[0])))
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._authenticator = ZapAuthenticator(self._context, self._socket, keys) if keys is not None else None
        self._socket.bind(address)
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._reader = SocketReader(self._socket, self._drain)
        self._handler: Handler | None = None
        self._identities: dict[str, bytes] = {}  # Of the peers that have sent an accepted frame, by name
        self._log_limit = LogRateLimit()

    def start(self, handler: Handler) -> None:
        """Call `handler` on the running event loop with every accepted frame.

        A handler refuses a frame by raising `InvalidRequest`, which is logged.
        """
        self._handler = handler
        if self._authenticator is not None:
            self._authenticator.start()
        self._reader.start()

    def _drain(self) -> None:
        while not self._socket.closed:
            try:
                parts = [self._socket.recv(NOBLOCK, copy=False)]
                while parts[-1].more:
                    parts.append(self._socket.recv(NOBLOCK, copy=False))
            except zmq.Again:
                return
            identity = parts[0].bytes
            try:
                self._on_frame(identity, parts)
            except (InvalidRequest, UnicodeDecodeError) as error:
                line = self._log_limit.line(f"A frame from {identity!r} was ignored: {error}", time.monotonic())
                if line is not None:
                    log.warning(line)

    def _on_frame(self, identity: bytes, parts: list[zmq.Frame]) -> None:
        """Check the sender, then decode and handle its frame; raises `InvalidRequest` if either is invalid."""
        if len(parts) != 2:
            raise InvalidRequest(f"It has {len(parts) - 1} parts.")
        name = identity_name(identity)
        if self._authenticator is not None:
            expected = self._key_of(name)
            if not expected:
                raise InvalidRequest(f"{name!r} is unknown here.")
            if parts[1].get(KEY_PROPERTY) != expected:
                raise InvalidRequest(f"Its key is not the key of {name!r}.")
        if not identity.endswith(ONE_WAY.encode()):
            self._identities[name] = identity
        incarnation, batch = decode_frame(parts[1].bytes, self._kinds)
        if self._handler is not None:
            self._handler(name, incarnation, batch)

    def send(self, peer: str, batch: Iterable[Any]) -> bool:
        """Queue messages for a peer as one frame, without waiting.

        Returns whether they were queued; they are not if the peer is disconnected or its queue is full.
        """
        identity = self._identities.get(peer)
        if identity is None:
            return False
        queued, frame = False, encode_frame(batch)
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send(identity, MORE)
            self._socket.send(frame, NOBLOCK)
            queued = True
        self._reader.after_send()
        return queued

    def forget(self, peer: str) -> None:
        """Send nothing more to a peer, unless it sends again and is accepted."""
        self._identities.pop(peer, None)

    def close(self) -> None:
        """Close the socket and its connections."""
        if not self._socket.closed:
            self._reader.stop()
        self._socket.close()
        if self._authenticator is not None:
            self._authenticator.close()
        self._context.term()
