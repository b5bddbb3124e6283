"""Clients that only timestamp bytes: for gRPC, for HTTP with server-sent events and for a worker's own socket.

Each starts named streams, returns which have ended, and parses the kept bytes only when asked for the tokens.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Iterator
from typing import Any, Protocol

import zmq

from baton.protocol import codec
from baton.protocol.gateway_messages import AttachStreams, StepOutput
from baton.protocol.messages import Prefill, Work
from baton.protocol.request import Request, SamplingParams
from baton.protocol.session_messages import GatewayJoined, RegisterAck
from baton.protocol.v1 import inference_pb2
from benchmarks.http2_reader import Http2Reader

PROMPT = 32  # Tokens
DRAIN_S = 60.0
DIRECT = "direct"  # The gateway's name where a worker is read without one
_POST = b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n"
_EVENT = re.compile(rb'"id":"([^"]+)".*"completion_tokens":(\d+)')
_COMPLETION = re.compile(rb'"id":"cmpl-([^"]+)".*"text":("(?:[^"\\]|\\.)*")')


class StreamClient(Protocol):
    """The interface of a client in a measurement."""

    messages: int  # Number of messages with tokens, counted by `tokens`.

    def start(self, name: str, tokens: int, prompt: int = PROMPT) -> None:
        """Request a stream of this many tokens, after a prompt of this many."""

    def read(self, timeout_s: float) -> list[str]:
        """Keep bytes that arrive within the time; returns the names of the streams that have ended."""

    def tokens(self) -> Iterator[tuple[str, int, float]]:
        """(stream, index, time of arrival) of every token received."""

    def close(self) -> None: ...


class Refused(RuntimeError):
    """A router answered a request with an error."""


def drain(client: StreamClient, streams: int, within_s: float = DRAIN_S) -> None:
    """Read until this many streams have ended; raises `RuntimeError` after `within_s`."""
    deadline, left = time.monotonic() + within_s, streams
    while left > 0:
        left -= len(client.read(0.05))
        if time.monotonic() > deadline and left > 0:
            raise RuntimeError(f"{left} of {streams} streams have not ended within {within_s:g} s.")


class GrpcClient:
    """All streams over one HTTP/2 connection, as gRPC clients do it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._reader = Http2Reader(port, "/baton.v1.Inference/Generate")
        self._names: dict[int, str] = {}
        self.messages = 0

    def start(self, name: str, tokens: int, prompt: int = PROMPT) -> None:
        ids = inference_pb2.TokenIds(ids=[5] * prompt)
        request = inference_pb2.GenerateRequest(
            request_id=name, token_ids=ids, sampling=inference_pb2.SamplingParams(max_tokens=tokens)
        )
        self._names[self._reader.request(request.SerializeToString())] = name

    def read(self, timeout_s: float) -> list[str]:
        self._reader.read(max(1e-4, timeout_s))
        return [self._names[stream] for stream in self._reader.ended()]

    def tokens(self) -> Iterator[tuple[str, int, float]]:
        for stream, arrived, body in self._reader.messages():
            self.messages += 1
            for token in inference_pb2.GenerateResponse.FromString(body).tokens:
                yield self._names[stream], token.index, arrived

    def close(self) -> None:
        self._reader.close()


class HttpClient:
    """A persistent HTTP/1.1 connection per concurrent stream, as in HTTP clients; more are opened when all are in use.

    sglang-router leaves Nagle's algorithm on, so with the kernel's delayed acknowledgements its first event arrives
    40 ms after the response head. With `prompt_acks` every read is acknowledged at once, which costs the client time.
    """

    def __init__(self, port: int, streams: int, prompt_acks: bool) -> None:
        self._selector = selectors.DefaultSelector()
        self._port = port
        self._prompt_acks = prompt_acks
        self._names: dict[socket.socket, str] = {}
        self._chunks: list[tuple[float, socket.socket, bytes]] = []
        self._tails: dict[socket.socket, bytes] = {}
        self._idle = [self._connect() for _ in range(streams)]
        self.messages = 0

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(connection, selectors.EVENT_READ)
        self._tails[connection] = b""
        return connection

    def start(self, name: str, tokens: int, prompt: int = PROMPT) -> None:
        request = self.request(name, tokens, prompt)
        connection = self._idle.pop() if self._idle else self._connect()
        self._names[connection] = name
        self._tails[connection] = b""
        self._acknowledge(connection)
        connection.sendall(request)

    def request(self, name: str, tokens: int, prompt: int) -> bytes:
        """A request to SGLang's own API."""
        sampling = {"max_new_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
        body = {"rid": name, "input_ids": [5] * prompt, "sampling_params": sampling, "stream": True}
        encoded = json.dumps(body).encode()
        return _POST % (b"/generate", len(encoded), b"") + encoded

    def tokens_of(self, event: bytes) -> tuple[str, range] | None:
        """The stream and the indexes of an event's tokens."""
        found = _EVENT.search(event)
        return None if found is None else (found[1].decode(), range(int(found[2]) - 1, int(found[2])))

    def read(self, timeout_s: float) -> list[str]:
        ended = []
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            connection: Any = key.fileobj
            data = connection.recv(1 << 18)
            if not data:
                raise Refused(f"The router closed the connection of stream {self._names.get(connection)}.")
            self._chunks.append((time.monotonic(), connection, data))
            self._acknowledge(connection)
            tail = self._tails[connection]
            if not tail and not data.startswith(b"HTTP/1.1 200"):
                raise Refused(f"A request was refused: {data[:300]!r}")
            tail = self._tails[connection] = (tail + data)[-7:]
            if tail == b"\r\n0\r\n\r\n":
                ended.append(self._names[connection])
                self._idle.append(connection)
        return ended

    def _acknowledge(self, connection: socket.socket) -> None:
        if self._prompt_acks:  # The kernel resets the option, so it is set each time.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def tokens(self) -> Iterator[tuple[str, int, float]]:
        buffers = dict.fromkeys(self._tails, b"")
        framing = re.compile(rb"\r\n[0-9A-Fa-f]+\r\n")
        for arrived, connection, data in self._chunks:
            # A chunk may end inside an event. Events have no carriage return, so it identifies the framing.
            body = framing.sub(b"", buffers[connection] + data)
            *events, buffers[connection] = body.split(b"\n\n")
            for event in events:
                if found := self.tokens_of(event):
                    self.messages += 1
                    for index in found[1]:
                        yield found[0], index, arrived

    def close(self) -> None:
        self._selector.close()
        for connection in self._tails:
            connection.close()


class CompletionClient(HttpClient):
    """Baton's OpenAI API. Mock tokens are one character each, so an event's text shows how many it has."""

    def __init__(self, port: int, streams: int, prompt_acks: bool) -> None:
        super().__init__(port, streams, prompt_acks)
        self._seen: dict[str, int] = {}

    def request(self, name: str, tokens: int, prompt: int) -> bytes:
        """A streamed completion, greedy, with its id in a header."""
        body = {"prompt": [5] * prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        encoded = json.dumps(body).encode()
        return _POST % (b"/v1/completions", len(encoded), b"x-request-id: %b\r\n" % name.encode()) + encoded

    def tokens_of(self, event: bytes) -> tuple[str, range] | None:
        """The stream and the indexes of an event's tokens."""
        found = _COMPLETION.search(event)
        if found is None:
            return None
        name, num_tokens = found[1].decode(), len(json.loads(found[2]))
        first = self._seen.get(name, 0)
        self._seen[name] = first + num_tokens
        return name, range(first, first + num_tokens)


class WorkerClient:
    """Reads Baton's decode worker as router and gateway do, over the ZeroMQ sockets that the worker is connected to."""

    def __init__(self, orders: zmq.Socket[bytes], tokens: zmq.Socket[bytes], worker: bytes) -> None:
        self._orders, self._tokens, self._worker = orders, tokens, worker
        self._arrived: list[tuple[str, int, float]] = []
        self.messages = 0

    def start(self, name: str, tokens: int, prompt: int = PROMPT) -> None:
        work = Work(Request(name, (5,) * prompt, SamplingParams(max_tokens=tokens)))
        order = Prefill(name, work, DIRECT, False, 0)
        self._orders.send_multipart([self._worker, codec.encode_frame([order])])

    def read(self, timeout_s: float) -> list[str]:
        ended: list[str] = []
        while self._orders.poll(0):  # What the router would read
            self._orders.recv_multipart()
        if not self._tokens.poll(max(0, int(1000 * timeout_s))):
            return ended
        frame = self._tokens.recv_multipart()[1]
        now = time.monotonic()
        for message in codec.decode_frame(frame, codec.FROM_WORKER_TO_GATEWAY)[1]:
            if isinstance(message, StepOutput):
                self._arrived += [(token.request_id, token.index, now) for token in message.tokens]
                ended += [token.request_id for token in message.tokens if token.finish is not None]
        return ended

    def tokens(self) -> Iterator[tuple[str, int, float]]:
        return iter(self._arrived)

    def close(self) -> None:
        """Do nothing: the caller owns the sockets."""


def attach(orders: zmq.Socket[bytes], tokens: zmq.Socket[bytes], address: str, workers: int, within_s: float) -> None:
    """Register this many workers and open their links for tokens; raises `RuntimeError` after `within_s`."""
    ready, deadline = [set[bytes](), set[bytes]()], time.monotonic() + within_s
    greetings = [RegisterAck("direct", 0.5, "1"), GatewayJoined(DIRECT, "1", address)]
    while len(ready[1]) < workers:
        for link, seen, answer in ((orders, ready[0], greetings), (tokens, ready[1], [AttachStreams(())])):
            if link.poll(50):
                worker = link.recv_multipart()[0]
                if worker not in seen:
                    seen.add(worker)
                    link.send_multipart([worker, codec.encode_frame(answer)])
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(ready[1])} of {workers} mock workers connected within {within_s:g} s.")
