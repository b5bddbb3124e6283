"""A mock prefill and a mock decode server for sglang-router and smg: HTTP/1.1 with server-sent events, without a model.

They answer a router's queries to an SGLang server: health, model, limits and load. One process listens on two ports.
The prefill port answers a request immediately with one token. The decode port sends the first token immediately, then
one per live stream and step, a step every `step_s` seconds (0: as fast as possible). Each token is one write of one
event, as an HTTP server sends it; an event carries its own token only, not the text so far.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.mock_baton import Left

_STREAM = (
    b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_PLAIN = b"HTTP/1.1 %s\r\nserver: mock\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_EVENT = (
    'data: {"text":" token","output_ids":[%d],"meta_info":{"id":"%s","finish_reason":%s,"prompt_tokens":32,'
    '"completion_tokens":%d,"cached_tokens":0}}\n\n'
)
LIMIT = 1 << 16  # Concurrent requests: so many that no router holds requests back.
MODEL = {"id": "mock", "object": "model", "created": 0, "owned_by": "sglang", "root": "mock", "max_model_len": 4096}


def about(path: str, decodes: bool, running: int) -> dict[str, Any] | None:
    """An SGLang server's answer to a query about itself with `running` requests; None for an unknown path."""
    load = {"dp_rank": 0, "num_running_reqs": running, "num_waiting_reqs": 0, "num_total_reqs": running}
    answers: dict[str, dict[str, Any]] = {
        "/health": {},
        "/v1/models": {"object": "list", "data": [MODEL]},
        "/server_info": {
            "model_path": "mock",
            "served_model_name": "mock",
            "tp_size": 1,
            "dp_size": 1,
            "max_running_requests": LIMIT,
            "disaggregation_mode": "decode" if decodes else "prefill",
        },
        "/model_info": {"model_path": "mock", "is_generation": True},
        "/v1/loads": {"timestamp": "", "dp_rank_count": 1, "loads": [{**load, "max_total_num_tokens": LIMIT << 8}]},
    }
    return answers.get(path.split("?", 1)[0])


def _plain(answer: dict[str, Any] | None) -> bytes:
    body = json.dumps(answer or {}).encode()
    return _PLAIN % (b"404 Not Found" if answer is None else b"200 OK", len(body), body)


def _chunk(name: str, index: int, last: bool) -> bytes:
    reason = '{"type":"length"}' if last else "null"
    event = (_EVENT % (40 + index % 50, name, reason, index + 1)).encode()
    return b"%x\r\n%s\r\n" % (len(event), event) + (_DONE if last else b"")


@dataclass(slots=True, eq=False)
class LiveStream:
    """A stream that is not finished."""

    name: str
    total: int
    connection: HttpConnection
    index: int = 1


@dataclass(eq=False)
class MockServers:
    """The state of both servers. `left` is recorded only while steps are paced."""

    step_s: float = 0.0
    live: list[LiveStream] = field(default_factory=list)
    left: Left = field(default_factory=dict)
    stepping: bool = False

    def generate(self, connection: HttpConnection, request: dict[str, Any], decodes: bool) -> None:
        """Start to answer a request for tokens."""
        name, total = request["rid"], request["sampling_params"]["max_new_tokens"] if decodes else 1
        if decodes and self.step_s:
            self.left[name, 0] = time.monotonic()
        connection.write(_STREAM + _chunk(name, 0, total == 1))
        if total > 1:
            self.live.append(LiveStream(name, total, connection))
            if not self.stepping:
                self.stepping = True
                self._later(time.monotonic())

    def _step(self, due: float) -> None:
        """Send one token for every live stream whose connection can take it."""
        now = time.monotonic()
        for stream in self.live:
            if stream.connection.full:
                continue
            if self.step_s:
                self.left[stream.name, stream.index] = now
            stream.connection.write(_chunk(stream.name, stream.index, stream.index + 1 == stream.total))
            stream.index += 1
        self.live = [stream for stream in self.live if stream.index < stream.total and not stream.connection.lost]
        self.stepping = bool(self.live)
        if self.stepping:
            self._later(due)

    def _later(self, due: float) -> None:
        """Schedule the next step, `step_s` after `due` or now if that is past; asyncio's clock is the monotonic one."""
        loop = asyncio.get_running_loop()
        following = max(due + self.step_s, time.monotonic())
        if self.step_s:
            loop.call_at(following, self._step, following)
        else:
            loop.call_soon(self._step, following)


@dataclass(eq=False)
class HttpConnection(asyncio.Protocol):
    """Requests of one connection, one at a time."""

    servers: MockServers
    decodes: bool
    full: bool = False
    lost: bool = False
    _received: bytes = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.write = transport.write

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].lower()
            if head.startswith(b"pri "):  # The preface of HTTP/2, which is not supported.
                self.transport.close()
                return
            field_at = head.find(b"content-length:")
            length = int(head[field_at + 15 :].split(b"\r\n", 1)[0]) if field_at >= 0 else 0
            if len(self._received) < end + 4 + length:
                return
            body, self._received = self._received[end + 4 : end + 4 + length], self._received[end + 4 + length :]
            if head.startswith(b"post /generate"):
                self.servers.generate(self, json.loads(body), self.decodes)
            else:
                path = head.split(b" ", 2)[1].decode()
                self.write(_plain(about(path, self.decodes, len(self.servers.live) if self.decodes else 0)))


async def _serve(pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    servers, stopped = MockServers(), asyncio.Event()
    listeners = [
        await loop.create_server(partial(HttpConnection, servers, decodes), "127.0.0.1", 0, backlog=1024)
        for decodes in (False, True)
    ]

    def on_order() -> None:
        try:
            order = pipe.recv()
        except EOFError:
            order = None
        if order is None:
            loop.remove_reader(pipe.fileno())
            stopped.set()
            return
        servers.step_s, left, servers.left = order, servers.left, {}
        pipe.send(left)

    loop.add_reader(pipe.fileno(), on_order)
    pipe.send(tuple(listener.sockets[0].getsockname()[1] for listener in listeners))
    await stopped.wait()


def mock_http_process(pipe: Connection) -> None:
    """Run both servers, controlled over `pipe`.

    It sends its (prefill, decode) ports. It then receives values of `step_s`, and answers each with the `Left` since
    the last one. It ends on None or when the pipe closes.
    """
    asyncio.run(_serve(pipe))
