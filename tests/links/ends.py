"""Both ends of a link, in one process."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from baton.links.frame_client import FrameClient
from baton.links.frame_server import FrameServer, Handler
from baton.links.keys import peer_keys, public_key
from baton.protocol.codec import FROM_ROUTER_TO_WORKER, TO_ROUTER
from baton.protocol.link_keys import ROUTER, PeerKeys
from baton.protocol.session_messages import RegisterAck
from tests.waiting import until_async

ANY_PORT = "tcp://127.0.0.1:*"


def server(secret: str = "", address: str = ANY_PORT, kinds: Collection[type] = TO_ROUTER) -> FrameServer:
    """The router's server."""
    if not secret:
        return FrameServer(address, kinds)
    return FrameServer(address, kinds, lambda name: public_key(secret, name), peer_keys(secret, ROUTER))


def client(address: str, name: str = "worker", keys: PeerKeys | None = None, **options: Any) -> FrameClient:
    """A worker's client."""
    return FrameClient(address, name, FROM_ROUTER_TO_WORKER, keys=keys, **options)


def acknowledging(link: FrameServer) -> Handler:
    """A handler that answers each frame."""

    def on_frame(peer: str, incarnation: str, batch: list[Any]) -> None:
        assert link.send(peer, [RegisterAck("router", 1.0, incarnation)])

    return on_frame


@dataclass(eq=False)
class Received:
    """What a client has received so far."""

    link: FrameClient
    changes: list[bool] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)

    def read(self) -> bool:
        changes, messages = self.link.receive()
        self.changes += changes
        self.messages += messages
        return True

    async def until_changes(self, *expected: bool) -> None:
        await until_async(lambda: self.read() and self.changes == list(expected))

    async def until_messages(self, count: int) -> None:
        await until_async(lambda: self.read() and len(self.messages) >= count)
