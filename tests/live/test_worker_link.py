"""The link between router and workers: with keys, only workers of this cluster are accepted."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import zmq

from baton.links.frame_server import WorkerLink
from baton.links.zap_authenticator import new_link_keys
from baton.protocol.errors import InvalidRequest
from baton.protocol.link_keys import LinkKeys, WorkerKeys
from baton.protocol.messages import Goodbye, RegisterAck, Reregister, RouterMessage, WorkerMessage
from baton.worker.router_link import RouterLink
from tests.waiting import until_async

REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)


def _grown(answers: list[RouterMessage], more: list[RouterMessage]) -> bool:
    answers += more
    return bool(answers)


async def _accepted_messages(keys: LinkKeys, *callers: WorkerKeys | None) -> tuple[dict[str, str], list[RouterMessage]]:
    """The messages received from each caller, once the invalid callers are refused and the valid one has an answer."""
    link = WorkerLink("tcp://127.0.0.1:*", keys.router)
    received: dict[str, str] = {}

    def on_frame(worker: str, incarnation: str, batch: list[WorkerMessage]) -> None:
        for message in batch:
            assert isinstance(message, Goodbye)
            received[worker] = message.reason
        link.send(worker, [RegisterAck("router", 1.0, "")])

    links = [RouterLink(link.address, f"caller-{number}", keys=key) for number, key in enumerate(callers)]
    right = RouterLink(link.address, "right", keys=keys.worker)
    refusals = [caller._socket.get_monitor_socket(REFUSED) for caller in links]
    try:
        for caller in links:  # they send first, and twice
            caller.send([Goodbye("first")])
        link.start(on_frame)
        for caller in links:
            caller.send([Goodbye("second")])
        right.send([Goodbye("hello")])
        await until_async(lambda: "right" in received)
        answers: list[RouterMessage] = []
        await until_async(lambda: _grown(answers, right.receive(0.0)))
        for refusal in refusals:
            await until_async(lambda refusal=refusal: refusal.poll(0) > 0)  # type: ignore[misc]
        right.send([Goodbye("still here")])
        await until_async(lambda: received["right"] == "still here")
        assert not [message for caller in links for message in caller.receive(0.0)]
        return received, answers
    finally:
        for caller, refusal in zip(links, refusals, strict=True):
            caller._socket.disable_monitor()
            refusal.close(0)
        for caller in (*links, right):
            caller._socket.setsockopt(zmq.LINGER, 0)
            caller.close()
        link.close()


def test_only_a_worker_with_the_clusters_key_is_accepted() -> None:
    keys, others = new_link_keys(), new_link_keys()
    without_a_key = None
    of_another_cluster = others.worker
    with_router_key = replace(others.worker, router_public=keys.router.public)
    with_both_public_keys = replace(others.worker, router_public=keys.router.public, secret=others.router.secret)
    received, answers = asyncio.run(
        _accepted_messages(keys, without_a_key, of_another_cluster, with_router_key, with_both_public_keys)
    )
    assert received == {"right": "still here"}
    assert answers == [RegisterAck("router", 1.0, "")]


def test_a_refused_frame_is_logged_once_and_the_next_is_read(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> list[str]:
        link = WorkerLink("tcp://127.0.0.1:*")
        seen: list[str] = []

        def on_frame(worker: str, incarnation: str, batch: list[WorkerMessage]) -> None:
            (message,) = batch
            assert isinstance(message, Goodbye)
            if message.reason == "bad":
                raise InvalidRequest("it is bad.")
            seen.append(message.reason)

        link.start(on_frame)
        worker = RouterLink(link.address, "worker")
        try:
            for reason in ("bad", "bad", "bad", "good"):
                worker.send([Goodbye(reason)])
            await until_async(lambda: bool(seen))
        finally:
            worker.close()
            link.close()
        return seen

    assert asyncio.run(run()) == ["good"]
    assert caplog.messages == ["A frame from worker b'worker' was ignored: it is bad."]


def test_the_keys_are_not_shown() -> None:
    keys = new_link_keys()
    assert keys.router.secret not in repr(keys)
    assert keys.worker.secret not in repr(keys)
    assert keys.router.public != new_link_keys().router.public


async def _connected(incarnation: str) -> tuple[WorkerLink, RouterLink]:
    """Both ends of the link to a worker, after its first message has arrived."""
    link = WorkerLink("tcp://127.0.0.1:*")
    received: list[str] = []
    link.start(lambda worker, incarnation, batch: received.append(worker))
    worker = RouterLink(link.address, "worker", incarnation)
    worker.send([Goodbye("hello")])
    await until_async(lambda: bool(received))
    return link, worker


def test_a_worker_whose_connection_broke_registers_again() -> None:
    """Messages in flight are lost in both directions, so the old incarnation must end."""

    async def run() -> tuple[list[RouterMessage], bool, bool]:
        link, worker = await _connected("first incarnation")
        assert worker.receive(0.0) == []
        known, unknown = link.send("worker", []), link.send("unknown", [])
        address = link.address
        link.close()
        again = WorkerLink(address)
        messages: list[RouterMessage] = []
        await until_async(lambda: _grown(messages, worker.receive(0.01)))
        worker.incarnation = "second incarnation"
        received: list[str] = []
        again.start(lambda worker, incarnation, batch: received.append(incarnation))
        worker.send([Goodbye("hello again")])
        await until_async(lambda: "second incarnation" in received)
        messages += worker.receive(0.0)
        worker.close()
        again.close()
        return messages, known, unknown

    messages, *sent = asyncio.run(run())
    assert messages == [Reregister("first incarnation", "")]
    assert sent == [True, False]


def test_a_worker_that_reads_nothing_gets_a_bounded_number_of_frames() -> None:
    async def run() -> bool:
        link, worker = await _connected("incarnation")
        order = [Reregister("x" * 100_000, "")]
        refused = any(not link.send("worker", order) for _ in range(5000))
        worker._socket.setsockopt(zmq.LINGER, 0)
        worker.close()
        link.close()
        return refused

    assert asyncio.run(run())
