"""One HTTP request and its response, over ASGI."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from baton.http.response import MAX_BODY_BYTES, BodyTooLarge, HttpResponse
from baton.protocol.errors import Cancelled

REQUEST_ID = "x-request-id"
TRACE_HEADERS = (b"traceparent", b"tracestate")
MAX_ID_CHARACTERS = 128
_ID = re.compile(r"[!-~]+")  # What a header can have, without spaces
_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


@dataclass(eq=False)
class Exchange:
    """`headers` have lower case names; of a header that is given twice the last counts."""

    scope: Mapping[str, Any]
    receive: Callable[[], Awaitable[Mapping[str, Any]]]
    send: Callable[[Mapping[str, Any]], Awaitable[None]]
    headers: dict[str, str] = field(init=False)
    request_id: str = field(init=False)
    started: bool = False  # The status has been sent
    streams: bool = False  # It has a stream of tokens, whose end is reported

    def __post_init__(self) -> None:
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.scope["headers"]}
        given = self.headers.get(REQUEST_ID, "")
        usable = len(given) <= MAX_ID_CHARACTERS and _ID.fullmatch(given)
        self.request_id = given if usable else uuid.uuid4().hex

    @property
    def authorization(self) -> list[tuple[str, str]]:
        """The headers with a token, as the metadata of a gRPC call."""
        pairs = self.scope["headers"]
        return [("authorization", value.decode("latin-1")) for name, value in pairs if name == b"authorization"]

    @property
    def trace_headers(self) -> list[tuple[str, str]]:
        """The headers of the caller's trace."""
        pairs = self.scope["headers"]
        return [(name.decode(), value.decode("latin-1")) for name, value in pairs if name in TRACE_HEADERS]

    async def body(self) -> bytes:
        """The whole body; raises `BodyTooLarge`, and `Cancelled` when the client has left.

        A body that is not much too large is read to its end, because clients look for the answer only then.
        """
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length) > 2 * MAX_BODY_BYTES:
            raise BodyTooLarge(f"The body has {length} bytes; at most {MAX_BODY_BYTES} are accepted.")
        parts, num_bytes = list[bytes](), 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("The client disconnected.")
            num_bytes += len(message["body"])
            if num_bytes <= MAX_BODY_BYTES:
                parts.append(message["body"])
            else:
                parts.clear()
            if not message["more_body"]:
                break
        if num_bytes > MAX_BODY_BYTES:
            raise BodyTooLarge(f"The body has {num_bytes} bytes; at most {MAX_BODY_BYTES} are accepted.")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def gone(self) -> None:
        """Wait until the client has left or the response is complete; call it after `body`."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def respond(self, response: HttpResponse) -> None:
        """Send a whole response."""
        headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in response.headers.items()]
        headers.append((b"content-length", b"%d" % len(response.body)))
        await self._start(response.status, headers)
        await self.send({"type": "http.response.body", "body": response.body})

    async def write(self, events: bytes) -> None:
        """Send a part of an event stream; waits while the client does not read."""
        if not self.started:
            await self._start(200, _EVENTS)
        await self.send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self, events: bytes) -> None:
        """Send the last part of an event stream."""
        if not self.started:
            await self._start(200, _EVENTS)
        await self.send({"type": "http.response.body", "body": events})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        request_id = (REQUEST_ID.encode(), self.request_id.encode())
        await self.send({"type": "http.response.start", "status": status, "headers": [request_id, *headers]})
