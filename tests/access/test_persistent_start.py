"""The start of an actor's server while its port is taken."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from baton.access.persistent_start import start_persistently


def _taken() -> tuple[socket.socket, int]:
    holder = socket.create_server(("127.0.0.1", 0))
    return holder, holder.getsockname()[1]


def test_a_first_start_that_fails_returns_its_sentence_at_once() -> None:
    holder, port = _taken()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port)

    with holder:
        sentence = asyncio.run(start_persistently("gateway-0", start, repeat=False))
    assert isinstance(sentence, str)
    assert sentence.startswith("gateway-0 could not start: ")
    assert "in use" in sentence


def test_a_repeated_start_succeeds_once_the_port_is_free_and_logs_each_reason_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    holder, port = _taken()
    attempts = 0

    async def start() -> asyncio.Server:
        nonlocal attempts
        attempts += 1
        if attempts == 4:
            raise RuntimeError("no such folder")
        if attempts == 6:
            holder.close()
        return await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port)

    async def play() -> None:
        server = await start_persistently("gateway-0", start, repeat=True, pause_s=0.001)
        assert isinstance(server, asyncio.Server)
        assert server.sockets[0].getsockname()[1] == port
        server.close()
        await server.wait_closed()

    with caplog.at_level(logging.ERROR, "baton"):
        asyncio.run(play())
    assert attempts == 6
    reasons = [record.getMessage() for record in caplog.records]
    assert ["in use" in reason for reason in reasons] == [True, False, True]
