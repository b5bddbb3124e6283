"""Clients of a gateway's HTTP server, with the far ends of router and worker behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from baton.gateway.build import RunningGateway
from tests.gateway.far_ends import FarEnds, gateway

BODY = {"prompt": [5, 6, 7], "max_tokens": 4}
STREAM = {**BODY, "stream": True}
Scene = Callable[[httpx2.AsyncClient, RunningGateway, FarEnds], Awaitable[None]]


@asynccontextmanager
async def serving(**section: Any) -> AsyncIterator[tuple[httpx2.AsyncClient, RunningGateway, FarEnds]]:
    """A client, and the gateway that it calls."""
    async with gateway(**section) as (running, far):
        limits = httpx2.Timeout(10.0)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{running.http_port}", timeout=limits) as client:
            yield client, running, far


def play(scene: Scene, **section: Any) -> None:
    """Run a scene; `section`: keys of [gateway]."""

    async def run() -> None:
        async with serving(**section) as parts:
            await scene(*parts)

    asyncio.run(run())


def events(text: str) -> list[Any]:
    """The documents of an event stream; the last is "[DONE]"."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def message_of(response: httpx2.Response) -> str:
    """The sentence of an error."""
    return str(response.json()["error"]["message"])


async def connect(running: RunningGateway, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client's bare connection on which some bytes were sent."""
    assert running.http_port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", running.http_port)
    writer.write(sent)
    return reader, writer


async def read_end(reader: asyncio.StreamReader) -> bytes:
    """All that arrives until the server closes the connection."""
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""


def post(body: dict[str, Any], *headers: str) -> bytes:
    """A request for a completion, as bytes."""
    encoded = json.dumps(body).encode()
    lines = "".join(f"{line}\r\n" for line in ("host: x", f"content-length: {len(encoded)}", *headers))
    return b"POST /v1/completions HTTP/1.1\r\n" + lines.encode() + b"\r\n" + encoded
