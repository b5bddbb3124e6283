"""The HTTP server: uvicorn's connections on the process's event loop, with the bounds that they lack.

A request must be complete within `REQUEST_S` of its turn, its head and its bytes on the wire are bounded, and a client
that does not read is disconnected. The number of connections is bounded, too. Requests may follow each other before
their answers (pipelining); an invalid one among them ends the connection after the answers to those before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from baton.http.errors import error_response
from baton.http.plain_parser import PlainParser
from baton.http.response import MAX_BODY_BYTES, HttpResponse
from baton.protocol.address import bare_host, join
from baton.protocol.errors import BatonError, ConfigError, InvalidRequest, Overloaded

REQUEST_S = 30.0  # From the first byte of a request, or from the connection, to the last byte of its body
IDLE_S = 75  # Of a connection between requests; more than clients keep theirs, so that none meets a closed one
HANDSHAKE_S = 10.0  # Of TLS
HEAD_BYTES = 64 << 10
WIRE_BYTES = 2 * MAX_BODY_BYTES + HEAD_BYTES  # Of a request; more than a body has, for chunks and to read one too many
CONNECTIONS = 8192
SPARE_FILES = 256  # Files left to the rest of the process
BACKLOG = 2048
CLOSE_S = 0.5  # For the ends of streams to be written
Application = Callable[[Any, Any, Any], Awaitable[None]]


class BoundedConnection(HttpToolsProtocol):
    """A client's connection. Each of its two timers ends it: one while a request is read, one while writes wait."""

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        max_connections: int,
        write_timeout_s: float,
    ) -> None:
        super().__init__(config, state, {})
        self.parser: PlainParser = PlainParser(self)  # type: ignore[assignment]
        self._max_connections, self._write_timeout_s = max_connections, write_timeout_s
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._request_bytes = self._segment_bytes = 0  # Of the request that is read, and of the latest bytes received
        self._in_head, self._refused = True, False
        self._cycles: list[RequestResponseCycle] = []  # Requests without a complete response, in their order

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection too many, else wait for its first request."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            self._refuse(Overloaded("Too many connections are open.", 1.0))
            return
        self._reading = self.loop.call_later(REQUEST_S, self._out_of_time)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers and the requests; uvicorn stops the latest one alone."""
        _cancel(self._reading)
        _cancel(self._writing)
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes, unless the request has too many."""
        if self.transport.is_closing() or self._refused:
            return
        self._segment_bytes = len(data)
        self._request_bytes += self._segment_bytes
        super().data_received(data)
        if self._in_head and self._request_bytes > HEAD_BYTES:
            self._refuse_head()
        elif self._request_bytes > WIRE_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """Start the request's time."""
        super().on_message_begin()
        self._in_head, self._request_bytes = True, self._segment_bytes
        _cancel(self._reading)
        self._reading = self.loop.call_later(REQUEST_S, self._out_of_time)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers, which follow the body, are not headers."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The body follows."""
        if self.parser.asked_for_other or self._refused:
            return
        if self._head_bytes > HEAD_BYTES:
            self._refuse_head()
            return
        self._in_head = False
        super().on_headers_complete()
        self._cycles = [*self._unanswered, self.cycle]

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self.parser.asked_for_other or self._refused:
            return
        _cancel(self._reading)
        self._in_head, self._reading, self._request_bytes, self._segment_bytes = True, None, 0, 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read: wait for it, but not for ever."""
        super().pause_writing()
        if self._write_timeout_s:
            self._writing = self.loop.call_later(self._write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        _cancel(self._writing)
        self._writing = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """In place of uvicorn's text."""
        self._refuse(InvalidRequest(msg))

    @property
    def _unanswered(self) -> list[RequestResponseCycle]:
        return [cycle for cycle in self._cycles if not cycle.response_complete]

    @property
    def _earlier(self) -> list[RequestResponseCycle]:
        """Unanswered requests before the one that is read."""
        return [cycle for cycle in self._unanswered if self._in_head or cycle is not self.cycle]

    @property
    def _head_bytes(self) -> int:
        """Bytes of the head that was read, without spaces around values."""
        line = len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n\r\n")
        return line + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)

    def _out_of_time(self) -> None:
        """A request is not complete in time. Its time begins again while an earlier one is being answered."""
        if self._earlier:
            self._reading = self.loop.call_later(REQUEST_S, self._out_of_time)
        else:
            self.transport.abort()

    def _refuse_head(self) -> None:
        self._refuse(InvalidRequest(f"The request's head has more than {HEAD_BYTES} bytes."), 431)

    def _refuse(self, error: BatonError, status: int | None = None) -> None:
        """Answer a request that is not passed on, and close; while others are being answered, close after them."""
        self._refused = True
        _cancel(self._reading)
        if earlier := self._earlier:
            earlier[-1].keep_alive = False
            if not self._in_head:
                self.pipeline.popleft()
            return
        response = error_response(error)
        self.transport.write(_bytes(response, status or response.status))
        self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _bytes(response: HttpResponse, status: int) -> bytes:
    headers = {**response.headers, "content-length": str(len(response.body)), "connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[status] + lines.encode() + b"\r\n" + response.body


@dataclass(eq=False)
class HttpServer:
    """Serves an ASGI application on `port`."""

    port: int
    listener: asyncio.Server
    state: ServerState
    _date: asyncio.TimerHandle | None = field(default=None)

    def tick(self) -> None:
        """Write the time into the responses of the next second."""
        self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._date = asyncio.get_running_loop().call_later(1.0, self.tick)

    async def stop(self, grace_s: float, end: Callable[[], None]) -> None:
        """Accept no more, give running requests `grace_s` seconds, then `end` them, and close all connections."""
        self.listener.close()
        for connection in list(self.state.connections):
            connection.shutdown()  # At once if it is idle, else after its response
        await self._ended(grace_s)
        end()
        await self._ended(CLOSE_S)
        for connection in list(self.state.connections):
            connection.transport.abort()
        await self._ended(CLOSE_S)
        _cancel(self._date)

    async def _ended(self, within_s: float) -> None:
        if self.state.tasks:
            await asyncio.wait(list(self.state.tasks), timeout=within_s)


async def start_http_server(
    application: Application,
    host: str,
    port: int,
    tls: ssl.SSLContext | None = None,
    *,
    key: str,
    share_port: bool = False,
    write_timeout_s: float = 30.0,
    max_connections: int | None = None,
) -> HttpServer:
    """Serve on `host` and `port` (0: any free port), which other processes may share with `share_port`.

    Raises `ConfigError`, which names the configuration's `key`, if the address cannot be used.
    """
    config = uvicorn.Config(
        application,
        http=BoundedConnection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",  # The application logs its own errors, and clients' mistakes need no line
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_S,
    )
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    most = max_connections or _max_connections()
    listening = await _listen(host, port, key, share_port)
    listener = await loop.create_server(
        lambda: BoundedConnection(config, state, most, write_timeout_s),
        sock=listening,
        backlog=BACKLOG,
        ssl=tls,
        ssl_handshake_timeout=HANDSHAKE_S if tls is not None else None,
    )
    server = HttpServer(listening.getsockname()[1], listener, state)
    server.tick()
    return server


async def _listen(host: str, port: int, key: str, share_port: bool) -> socket.socket:
    """A bound socket; with `share_port` other processes of this node can bind its address, too."""
    with _config_error(join(host, port), key):
        found = await asyncio.get_running_loop().getaddrinfo(bare_host(host), port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share_port)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
        return listening


@contextlib.contextmanager
def _config_error(address: str, key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"HTTP cannot be served on {address}: {error.strerror} ({key}).") from None


def _max_connections() -> int:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return CONNECTIONS if files < 0 else max(64, min(CONNECTIONS, files - SPARE_FILES))
