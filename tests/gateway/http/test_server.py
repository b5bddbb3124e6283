"""The bounds of the HTTP server: slow and greedy clients, invalid HTTP, addresses."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from baton.gateway.build import RunningGateway, start_gateway
from baton.http import server
from baton.http.response import MAX_BODY_BYTES
from baton.protocol.errors import ConfigError
from baton.protocol.gateway_messages import StopRequest, Submit
from tests.gateway.far_ends import FarEnds, config
from tests.gateway.http.calls import STREAM, connect, message_of, play, read_end
from tests.waiting import until_async


def test_a_client_that_does_not_read_is_disconnected() -> None:
    async def scene() -> None:
        gone = asyncio.Event()

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            writing = asyncio.ensure_future(_write_for_ever(send))
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            writing.cancel()

        running = await server.start_http_server(application, "127.0.0.1", 0, key="port", write_timeout_s=0.3)
        slow = socket.create_connection(("127.0.0.1", running.port))
        slow.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(gone.wait(), 10)
        slow.close()
        await running.stop(1.0, lambda: None)

    asyncio.run(scene())


async def _write_for_ever(send: Any) -> None:
    while True:
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})


@pytest.mark.parametrize(
    "sent", [b"", b"GET /health HTTP/1.1\r\nx: ", b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"]
)
def test_a_request_that_is_not_completed_in_time_is_disconnected(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.3)

    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        reader, writer = await connect(running, sent)
        assert await read_end(reader) == b""
        writer.close()
        assert (await client.get("/health")).status_code == 200

    play(scene)


def test_a_connection_is_kept_between_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.3)

    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        reader, writer = await connect(running)
        for _ in range(3):
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.4)
        writer.close()

    play(scene)


def test_invalid_http_and_heads_without_end_are_refused_in_json() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        for sent, status in ((b"\x16\x03\x01\x02\x00", b"400"), (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, b"431")):
            reader, writer = await connect(running, sent)
            answer = await read_end(reader)
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
            writer.close()

    play(scene)


def test_a_request_that_asks_for_http_2_is_answered_over_http_1() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        body = b'{"prompt": "a b"}'
        asked = b"host: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
        request = b"POST /tokenize HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n%b" % (asked, len(body), body)
        last = request.replace(b"connection: Upgrade, HTTP2-Settings", b"connection: Upgrade, close")
        answers = []
        for pieces in ([request * 3 + last], [bytes([byte]) for byte in request * 3 + last]):
            reader, writer = await connect(running)
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            answers.append(await read_end(reader))
            writer.close()
        assert [answer.count(b"HTTP/1.1 200 OK") for answer in answers] == [4, 4]
        assert [answer.count(b'"count":2') for answer in answers] == [4, 4]

    play(scene)


def test_trailers_are_not_taken_for_headers() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        head = b"POST /tokenize HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        chunks = b'f\r\n{"prompt":"a b"\r\n1\r\n}\r\n0\r\nx-request-id: late\r\n\r\n'
        reader, writer = await connect(running, head + chunks)
        answer = await read_end(reader)
        assert answer.startswith(b"HTTP/1.1 200") and b"late" not in answer
        writer.close()

    play(scene)


def test_a_body_that_is_too_large_is_refused_whatever_its_framing() -> None:
    async def chunks(num_bytes: int) -> AsyncIterator[bytes]:
        for _ in range(num_bytes >> 16):
            yield b" " * (1 << 16)

    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        for content in (b" " * (MAX_BODY_BYTES + 1), chunks(MAX_BODY_BYTES + (1 << 16))):
            response = await client.post("/v1/completions", content=content)
            assert response.status_code == 413
            assert str(MAX_BODY_BYTES) in message_of(response)
        _, writer = await connect(running, b"POST /tokenize HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):  # It sends for ever
            while True:
                writer.write(b"10000\r\n" + b" " * (1 << 16) + b"\r\n")
                await writer.drain()

    play(scene)


def test_more_connections_than_the_limit_are_refused_at_once() -> None:
    async def no_application(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    async def scene() -> None:
        running = await server.start_http_server(no_application, "127.0.0.1", 0, key="port", max_connections=2)
        held = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(2)]
        await until_async(lambda: len(running.state.connections) == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        assert (await read_end(reader)).startswith(b"HTTP/1.1 429")
        for _, each in (*held, (reader, writer)):
            each.close()
        await running.stop(0.0, lambda: None)

    asyncio.run(scene())


def test_http_can_be_off_and_two_gateways_share_its_port() -> None:
    async def scene() -> None:
        without = await start_gateway(config(http_port="off"))
        one = await start_gateway(config())
        two = await start_gateway(config(http_port=one.http_port))
        assert (without.http_port, without.addresses.http) == (None, "")
        assert two.http_port == one.http_port
        with pytest.raises(ConfigError, match=r"203\.0\.113\.9"):
            await server.start_http_server(one.http_app, "203.0.113.9", 0, key="gateway.http_port")
        for each in (without, one, two):
            await each.stop(0.0)

    asyncio.run(scene())


def test_a_head_is_bounded_to_the_byte_also_when_its_body_comes_with_it() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        body = b'{"prompt": "a b"}'
        head = b"POST /tokenize HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\nx: %b\r\n\r\n"
        room = server.HEAD_BYTES - len(head % (len(body), b""))
        for more, status in ((0, b"200"), (1, b"431")):
            reader, writer = await connect(running, head % (len(body), b"y" * (room + more)) + body)
            assert (await read_end(reader)).startswith(b"HTTP/1.1 " + status)
            writer.close()

    play(scene)


STREAMED = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-id: r\r\ncontent-length: %d\r\n\r\n%b" % (
    len(json.dumps(STREAM)),
    json.dumps(STREAM).encode(),
)


@pytest.mark.parametrize(
    "after",
    [b"GET /heal", b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"],
    ids=["a part of a head", "a part of a body"],
)
def test_a_part_of_a_next_request_cuts_no_answer_and_ends_the_connection_after_it(
    after: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.2)

    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        reader, writer = await connect(running, STREAMED + after)
        await far.until(Submit)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.7)
        await far.send_tokens("r", range(4), ends=True)
        answer = await read_end(reader)
        assert answer.count(b"HTTP/1.1") == 1
        assert b"data: [DONE]" in answer
        writer.close()

    play(scene)


@pytest.mark.parametrize(
    "after",
    [
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000,
        b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
    ],
    ids=["no HTTP", "a head without end", "an invalid chunk", "two lengths"],
)
def test_an_invalid_request_after_another_does_not_write_into_its_answer(after: bytes) -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        reader, writer = await connect(running, STREAMED)
        await far.until(Submit)
        writer.write(after)
        await far.send_tokens("r", range(4), ends=True)
        answer = await read_end(reader)
        assert answer.count(b"HTTP/1.1") == 1
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        writer.close()

    play(scene)


def test_a_client_that_leaves_stops_every_request_that_it_sent_on_its_connection() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        _, writer = await connect(running, STREAMED + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        await far.until(Submit)
        writer.transport.abort()
        assert (await far.until(StopRequest)).request_id == "r"

    play(scene)
