"""Keys of links: each process has its own, and a frame is accepted only with the key of its sender's name."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from baton.links.frame_client import FrameClient
from baton.links.frame_server import FrameServer
from baton.links.keys import link_identity, new_secret, peer_keys, public_key
from baton.protocol.codec import FROM_GATEWAY_TO_WORKER, FROM_WORKER_TO_GATEWAY
from baton.protocol.gateway_messages import AttachStreams, LinkUp
from baton.protocol.link_keys import ROUTER, PeerKeys
from baton.protocol.session_messages import Goodbye, RegisterAck
from tests.links.ends import ANY_PORT, Received, client, server
from tests.waiting import until_async


def test_every_name_has_a_pair_of_its_own_which_the_secret_decides() -> None:
    secret, others = new_secret(), new_secret()
    pairs = [peer_keys(cluster, name) for cluster in (secret, others) for name in (ROUTER, "decode-0", "decode-1")]
    assert len({pair.public for pair in pairs}) == len({pair.secret for pair in pairs}) == len(pairs)
    assert peer_keys(secret, "decode-0") == peer_keys(secret, "decode-0")
    for name in (ROUTER, "decode-0"):
        pair = peer_keys(secret, name)
        assert zmq.curve_public(pair.secret.encode()).decode() == pair.public == public_key(secret, name)
        assert pair.router_public == public_key(secret, ROUTER)


def test_the_keys_are_not_shown() -> None:
    secret = new_secret()
    pair = peer_keys(secret, "decode-0")
    assert pair.secret not in repr(pair)
    assert pair.router_public not in repr(pair)


def test_an_identity_differs_from_server_to_server() -> None:
    """One server could take over a peer's connection to another if it knew the identity there."""
    pair = peer_keys(new_secret(), "decode-0")
    assert len({link_identity("decode-0", pair, server) for server in ("one", "another")}) == 2


@dataclass(eq=False)
class Router:
    """A guarded router that answers each accepted frame."""

    secret: str
    link: FrameServer = field(init=False)
    accepted: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.link = server(self.secret)
        self.link.start(self._on_frame)

    def _on_frame(self, peer: str, incarnation: str, batch: list[Any]) -> None:
        self.accepted += [(peer, message.reason) for message in batch]
        assert self.link.send(peer, [RegisterAck(peer, 1.0, "")])


async def _exchange(secret: str, name: str, pair: PeerKeys | None) -> tuple[Router, Received, Received]:
    """A router to which "decode-0" is connected when a caller sends as `name` with `pair`, and both links."""
    router = Router(secret)
    right = Received(client(router.link.address, "decode-0", peer_keys(secret, "decode-0")))
    right.link.send([Goodbye("hello")])
    await right.until_messages(1)
    caller = Received(client(router.link.address, name, pair))
    caller.link.send([Goodbye("first")])
    return router, right, caller


async def _end(router: Router, right: Received, caller: Received) -> None:
    """The right worker is still connected, alone; close all."""
    right.link.send([Goodbye("still here")])
    await right.until_messages(2)
    assert router.link.send("decode-0", [RegisterAck("again", 1.0, "")])
    await right.until_messages(3)
    assert caller.read()
    assert not caller.messages
    assert router.accepted == [("decode-0", "hello"), ("decode-0", "still here")]
    for one in (right, caller):
        one.link._socket.setsockopt(zmq.LINGER, 0)
        one.link.close()
    router.link.close()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        pytest.param("decode-0", "decode-1", id="the key of another worker"),
        pytest.param("decode-1", "decode-0", id="the name of another worker"),
        pytest.param("decode-0", None, id="a key of no process of the cluster"),
        pytest.param("stranger", None, id="a stranger's name and key"),
    ],
)
def test_a_frame_under_another_key_than_its_names_is_refused(
    name: str, other: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        secret = new_secret()
        pair = peer_keys(secret, other) if other else peer_keys(new_secret(), name)
        pair = replace(pair, router_public=public_key(secret, ROUTER))
        router, right, caller = await _exchange(secret, name, pair)
        await until_async(lambda: bool(caplog.messages))
        await _end(router, right, caller)

    asyncio.run(run())
    assert f"was ignored: Its key is not the key of {name!r}." in caplog.messages[0]


@pytest.mark.parametrize("keyed", [True, False], ids=["the router's key of another cluster", "no keys"])
def test_a_handshake_without_the_routers_key_fails(keyed: bool) -> None:
    async def run() -> None:
        secret = new_secret()
        pair = replace(peer_keys(secret, "decode-1"), router_public=public_key(new_secret(), ROUTER))
        router, right, caller = await _exchange(secret, "decode-1", pair if keyed else None)
        refusals = caller.link._monitor
        assert refusals is not None
        await until_async(lambda: refusals.poll(0) > 0)
        assert recv_monitor_message(refusals)["event"] == zmq.EVENT_DISCONNECTED
        await _end(router, right, caller)
        assert not caller.changes

    asyncio.run(run())


def test_a_gateway_accepts_the_workers_that_it_has_keys_of_and_no_longer_than_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        secret = new_secret()
        gateway_keys = peer_keys(secret, "gateway-0")
        workers = {"decode-0": peer_keys(secret, "decode-0").public}
        accepted: list[tuple[str, str]] = []
        gateway = FrameServer(ANY_PORT, FROM_WORKER_TO_GATEWAY, lambda name: workers.get(name, ""), gateway_keys)

        def on_frame(peer: str, incarnation: str, batch: list[Any]) -> None:
            accepted.extend((peer, message.incarnation) for message in batch)
            gateway.send(peer, [AttachStreams(())])

        gateway.start(on_frame)
        early, worker = (
            Received(
                FrameClient(
                    gateway.address, name, FROM_GATEWAY_TO_WORKER, "", peer_keys(secret, name), gateway_keys.public
                )
            )
            for name in ("decode-1", "decode-0")
        )
        early.link.send([LinkUp("decode-1", "too early")])
        await until_async(lambda: len(caplog.messages) == 1)
        worker.link.send([LinkUp("decode-0", "first")])
        await worker.until_messages(1)
        del workers["decode-0"]
        worker.link.send([LinkUp("decode-0", "after it has left")])
        workers["decode-1"] = peer_keys(secret, "decode-1").public
        early.link.send([LinkUp("decode-1", "second")])
        await early.until_messages(1)
        assert accepted == [("decode-0", "first"), ("decode-1", "second")]
        for one in (early, worker):
            one.link.close()
        gateway.close()

    asyncio.run(run())


def test_router_and_gateway_run_in_one_process() -> None:
    async def run() -> None:
        secret = new_secret()
        router, other = Router(secret), Router(new_secret())
        worker = Received(client(router.link.address, "decode-0", peer_keys(secret, "decode-0")))
        stranger = Received(client(other.link.address, "decode-0", peer_keys(other.secret, "decode-0")))
        for one in (worker, stranger):
            one.link.send([Goodbye("hello")])
            await one.until_messages(1)
            one.link.close()
        router.link.close()
        other.link.close()

    asyncio.run(run())
