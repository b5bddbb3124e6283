"""The worker's ends of its links, to the router and to each gateway, behind one poller. The worker's loop owns them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import zmq

from baton.links.frame_client import FrameClient
from baton.links.waker import Waker
from baton.protocol.codec import FROM_GATEWAY_TO_WORKER, FROM_ROUTER_TO_WORKER
from baton.protocol.gateway_messages import TokenMessage
from baton.protocol.link_keys import PeerKeys
from baton.protocol.messages import WorkerMessage
from baton.protocol.session_messages import GatewayJoined


@dataclass(frozen=True, slots=True)
class Arrival:
    """What has come over one link: changes of the connection (True: it is up), then messages."""

    gateway: str  # "": the router's link
    changes: list[bool]
    messages: list[Any]


@dataclass(eq=False)
class WorkerLinks:
    """The links of the worker `name`. With `keys`, its own, frames are encrypted."""

    name: str
    router_address: str
    incarnation: str
    keys: PeerKeys | None = None
    _context: zmq.Context[zmq.Socket[bytes]] = field(default_factory=zmq.Context)
    _poller: zmq.Poller = field(default_factory=zmq.Poller)
    _waker: Waker = field(default_factory=Waker)
    _clients: dict[str, FrameClient] = field(default_factory=dict)  # By gateway; "": the router's
    _name_of: dict[Any, str] = field(default_factory=dict)  # Of each socket
    _tokens: dict[str, list[TokenMessage]] = field(default_factory=dict)  # To send with the next `flush_tokens`

    def __post_init__(self) -> None:
        self._poller.register(self._waker.fileno(), zmq.POLLIN)
        self._connect("", FrameClient(self.router_address, self.name, FROM_ROUTER_TO_WORKER, **self._options()))

    def _options(self) -> dict[str, Any]:
        return {"incarnation": self.incarnation, "keys": self.keys, "context": self._context}

    def _connect(self, gateway: str, client: FrameClient) -> None:
        self._clients[gateway] = client
        for socket in client.sockets:
            self._poller.register(socket, zmq.POLLIN)
            self._name_of[socket] = gateway

    def connect(self, joined: GatewayJoined) -> None:
        """Open the link to a gateway."""
        client = FrameClient(
            joined.address, self.name, FROM_GATEWAY_TO_WORKER, server_key=joined.public_key, **self._options()
        )
        self._connect(joined.gateway, client)

    def disconnect(self, gateway: str) -> None:
        """Close the link to a gateway; frames that wait are sent for half a second at most."""
        client = self._clients.pop(gateway)
        self._tokens.pop(gateway, None)
        for socket in client.sockets:
            self._poller.unregister(socket)
            del self._name_of[socket]
        client.close()

    def renew(self, incarnation: str) -> None:
        """Send all frames as this incarnation from now on."""
        self.incarnation = incarnation
        for client in self._clients.values():
            client.incarnation = incarnation

    def receive(self, wait_s: float) -> list[Arrival]:
        """What has arrived, waiting up to `wait_s` for the first; empty after a `wake`."""
        ready = [socket for socket, _ in self._poller.poll(int(wait_s * 1000))]
        if self._waker.fileno() in ready:
            self._waker.clear()
        gateways = dict.fromkeys(self._name_of[socket] for socket in ready if socket in self._name_of)
        return [Arrival(gateway, *self._clients[gateway].receive()) for gateway in gateways]

    def send(self, batch: list[WorkerMessage]) -> bool:
        """Queue messages for the router as one frame; never waits. False: too many frames are queued."""
        return self._clients[""].send(batch)

    def put(self, gateway: str, message: TokenMessage) -> None:
        """Send a message to a gateway with the next `flush_tokens`."""
        self._tokens.setdefault(gateway, []).append(message)

    def flush_tokens(self) -> list[str]:
        """Queue what was put, one frame per gateway; never waits. Returns the gateways whose links are full."""
        tokens, self._tokens = self._tokens, {}
        return [gateway for gateway, batch in tokens.items() if not self._clients[gateway].send(batch)]

    def wake(self) -> None:
        """Make a waiting `receive` return; may be called from any thread."""
        self._waker.wake()

    def close(self) -> None:
        """Deliver what is queued (half a second at most) and close."""
        for client in self._clients.values():
            client.close()
        self._waker.close()
        self._context.term()
