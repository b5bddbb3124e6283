"""Frames between a server and its clients: order, breaks, full queues and refused frames."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import zmq

from baton.links.frame_client import UNSENT_FRAMES
from baton.links.waker import Waker
from baton.protocol.errors import InvalidRequest
from baton.protocol.session_messages import Alive, Goodbye, RegisterAck, Reregister
from tests.links.ends import Received, acknowledging, client, server
from tests.waiting import until_async


def test_messages_keep_their_order_in_both_directions() -> None:
    async def run() -> tuple[list[Any], list[Any]]:
        router = server()
        arrived: list[tuple[str, str, str]] = []

        def on_frame(peer: str, incarnation: str, batch: list[Any]) -> None:
            arrived.extend((peer, incarnation, message.reason) for message in batch)
            for message in batch:
                assert router.send(peer, [Reregister(message.reason, "")])

        router.start(on_frame)
        worker = Received(client(router.address, incarnation="first"))
        for number in range(300):
            assert worker.link.send([Goodbye(f"{number}a"), Goodbye(f"{number}b")])
        await worker.until_messages(600)
        worker.link.close()
        router.close()
        return arrived, worker.messages

    arrived, answers = asyncio.run(run())
    reasons = [f"{number}{half}" for number in range(300) for half in "ab"]
    assert arrived == [("worker", "first", reason) for reason in reasons]
    assert answers == [Reregister(reason, "") for reason in reasons]


def test_a_client_on_the_event_loop_is_called_with_changes_and_messages() -> None:
    async def run() -> list[tuple[list[bool], list[Any]]]:
        router = server()
        router.start(acknowledging(router))
        link, calls = client(router.address), []
        link.start(lambda changes, batch: calls.append((changes, batch)))
        await until_async(lambda: bool(calls))
        for answers in (1, 2, 3):
            link.send([Alive()])
            await until_async(lambda answers=answers: sum(len(batch) for _, batch in calls) == answers)  # type: ignore[misc]
        link.close()
        router.close()
        return calls

    calls = asyncio.run(run())
    assert [change for changes, _ in calls for change in changes] == [True]
    assert [message for _, batch in calls for message in batch] == [RegisterAck("router", 1.0, "")] * 3
    assert all(changes or batch for changes, batch in calls)


def test_a_client_reports_that_its_connection_broke_and_came_back() -> None:
    async def run() -> list[str]:
        router = server()
        router.start(lambda peer, incarnation, batch: None)
        worker = Received(client(router.address, incarnation="first"))
        await worker.until_changes(True)
        router.close()
        await worker.until_changes(True, False)
        assert worker.link.send([Goodbye("while the server is away")])
        again = server(address=router.address)
        reasons: list[str] = []
        again.start(lambda peer, incarnation, batch: reasons.extend(message.reason for message in batch))
        await worker.until_changes(True, False, True)
        worker.link.send([Goodbye("after")])
        await until_async(lambda: len(reasons) == 2)
        worker.link.close()
        again.close()
        return reasons

    assert asyncio.run(run()) == ["while the server is away", "after"]


def test_a_server_that_is_not_there_yet_is_no_break() -> None:
    async def run() -> None:
        router = server()
        address = router.address
        router.close()
        worker = Received(client(address))
        router = server(address=address)
        await worker.until_changes(True)
        worker.link.close()
        router.close()

    asyncio.run(run())


def test_a_restarted_peer_takes_over_its_name() -> None:
    async def run() -> None:
        router, arrived = server(), []
        router.start(lambda peer, incarnation, batch: arrived.append(incarnation))
        first = client(router.address, incarnation="first")
        first.send([Alive()])
        await until_async(lambda: arrived == ["first"])
        first.close()
        second = Received(client(router.address, incarnation="second"))
        second.link.send([Alive()])
        await until_async(lambda: arrived == ["first", "second"])
        assert router.send("worker", [RegisterAck("router", 1.0, "second")])
        await second.until_messages(1)
        second.link.close()
        router.close()

    asyncio.run(run())


def test_nothing_is_sent_to_a_one_way_connection() -> None:
    async def run() -> None:
        router, arrived = server(), []
        router.start(lambda peer, incarnation, batch: arrived.append(peer))
        worker, heartbeat = Received(client(router.address)), client(router.address, one_way=True)
        heartbeat.send([Alive()])
        await until_async(lambda: arrived == ["worker"])
        assert not router.send("worker", [RegisterAck("router", 1.0, "")])
        worker.link.send([Alive()])
        await until_async(lambda: len(arrived) == 2)
        heartbeat.send([Alive()])
        await until_async(lambda: len(arrived) == 3)
        assert router.send("worker", [RegisterAck("router", 1.0, "")])
        await worker.until_messages(1)
        router.forget("worker")
        assert not router.send("worker", [RegisterAck("router", 1.0, "")])
        worker.link.close()
        heartbeat.close()
        router.close()

    asyncio.run(run())


def test_a_frame_that_does_not_fit_a_clients_queue_is_not_taken() -> None:
    worker = client("tcp://127.0.0.1:1")
    taken = [worker.send([Alive()]) for _ in range(UNSENT_FRAMES + 1)]
    assert taken == [True] * UNSENT_FRAMES + [False]
    worker.close()


def test_a_peer_that_reads_nothing_gets_a_bounded_number_of_frames() -> None:
    async def run() -> bool:
        router, arrived = server(), []
        router.start(lambda peer, incarnation, batch: arrived.append(peer))
        worker = client(router.address)
        worker.send([Alive()])
        await until_async(lambda: bool(arrived))
        order = [Reregister("x" * 100_000, "")]
        refused = any(not router.send("worker", order) for _ in range(5000))
        worker.close()
        router.close()
        return refused

    assert asyncio.run(run())


def test_a_refused_frame_is_logged_once_and_the_next_is_read(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> list[str]:
        router, seen = server(), []

        def on_frame(peer: str, incarnation: str, batch: list[Any]) -> None:
            (message,) = batch
            if message.reason == "bad":
                raise InvalidRequest("it is bad.")
            seen.append(message.reason)

        router.start(on_frame)
        worker = client(router.address)
        for reason in ("bad", "bad", "bad", "good"):
            worker.send([Goodbye(reason)])
        await until_async(lambda: bool(seen))
        worker.close()
        router.close()
        return seen

    assert asyncio.run(run()) == ["good"]
    assert caplog.messages == ["A frame from b'worker' was ignored: it is bad."]


def test_a_handler_that_fails_keeps_no_frame_from_the_next() -> None:
    async def run() -> list[str]:
        router, seen, failures = server(), [], []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))

        def on_frame(peer: str, incarnation: str, batch: list[Any]) -> None:
            if batch[0].reason == "fails":
                raise RuntimeError("a bug")
            seen.append(batch[0].reason)

        worker = client(router.address)
        for reason in ("fails", "good"):
            worker.send([Goodbye(reason)])
        router.start(on_frame)
        await until_async(lambda: seen == ["good"])
        assert len(failures) == 1
        worker.close()
        router.close()
        return seen

    asyncio.run(run())


def test_a_message_of_a_kind_that_its_sender_may_not_send_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> list[Any]:
        router, seen = server(kinds={Alive}), []
        router.start(lambda peer, incarnation, batch: seen.extend(batch))
        worker = Received(client(router.address))
        worker.link.send([Alive(), Goodbye("its frame is refused as a whole")])
        worker.link.send([Alive()])
        await until_async(lambda: bool(seen))
        router.send("worker", [Goodbye("of a server")])
        router.send("worker", [RegisterAck("router", 1.0, "")])
        await worker.until_messages(1)
        worker.link.close()
        router.close()
        return [*seen, *worker.messages]

    assert asyncio.run(run()) == [Alive(), RegisterAck("router", 1.0, "")]
    refused = "A frame has a message that its sender may not send: Goodbye."
    assert [message.partition("ignored: ")[2] for message in caplog.messages] == [refused, refused]


def test_bytes_that_are_no_frame_are_refused() -> None:
    async def run() -> None:
        router, seen = server(), []
        router.start(lambda peer, incarnation, batch: seen.append(peer))
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.setsockopt(zmq.IDENTITY, b"\xff\xfe")
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.connect(router.address)
            stranger.send(b"\xff" * 50)
            stranger.send_multipart([b"", b"", b""])
            worker = client(router.address)
            worker.send([Alive()])
            await until_async(lambda: seen == ["worker"])
            worker.close()
        router.close()

    asyncio.run(run())


def test_several_links_wait_in_one_poller_with_a_waker() -> None:
    async def run() -> None:
        routers = [server(), server()]
        for router in routers:
            router.start(acknowledging(router))
        context: zmq.Context[Any] = zmq.Context()
        links = [Received(client(router.address, context=context)) for router in routers]
        waker, poller = Waker(), zmq.Poller()
        poller.register(waker, zmq.POLLIN)
        for one in links:
            for socket in one.link.sockets:
                poller.register(socket, zmq.POLLIN)
            one.link.send([Alive()])
        for one in links:
            while not one.messages:
                ready = dict(await asyncio.to_thread(poller.poll, 20_000))
                assert any(socket in ready for socket in (*links[0].link.sockets, *links[1].link.sockets))
                for other in links:
                    other.read()
        assert not poller.poll(0)
        waker.wake()
        waker.wake()
        assert dict(poller.poll(20_000)) == {waker.fileno(): zmq.POLLIN}
        waker.clear()
        assert not poller.poll(0)
        for one in links:
            one.link.close()
        for router in routers:
            router.close()
        waker.close()
        context.term()

    asyncio.run(run())


def test_a_waker_takes_wakes_from_other_threads_and_after_its_end() -> None:
    waker = Waker()
    poller = zmq.Poller()
    poller.register(waker, zmq.POLLIN)
    thread = threading.Thread(target=waker.wake)
    thread.start()
    assert poller.poll(20_000)
    thread.join()
    waker.close()
    waker.wake()
