"""Pings distinguish a dead gateway from a silent one; these tests ping often, to be quick."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import baton
import baton.client.connection
from baton.config.process_config import RouterConfig
from tests.plans import router_config, start_front


def _serve(plan: RouterConfig, ready: Connection) -> None:
    async def run() -> None:
        front = await start_front(plan)
        ready.send(front.address)
        await asyncio.Event().wait()

    asyncio.run(run())


@pytest.fixture(scope="module")
def gateway(checkpoint: Path) -> Iterator[tuple[int, str]]:
    """Process id and address of a gateway without workers: requests wait silently for five seconds."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(router_config(checkpoint), theirs))
    process.start()
    try:
        assert ours.poll(120)
        assert process.pid is not None
        yield process.pid, ours.recv()
    finally:
        process.kill()
        process.join()


@pytest.fixture(autouse=True)
def _ping_often(monkeypatch: pytest.MonkeyPatch) -> None:
    often = {"grpc.keepalive_time_ms": 600, "grpc.keepalive_timeout_ms": 900, "grpc.http2.ping_timeout_ms": 900}
    options = [(name, often.get(name, value)) for name, value in baton.client.connection.OPTIONS]
    assert sum(name in often for name, _ in options) == len(often)
    monkeypatch.setattr(baton.client.connection, "OPTIONS", options)


def test_a_silent_stream_is_pinged_and_continues(gateway: tuple[int, str]) -> None:
    with baton.Client(gateway[1]) as client:
        stream = client.stream([1, 2, 3], max_tokens=1)
        with pytest.raises(baton.NoWorkers):
            next(stream)
    assert stream._history.breaks == 0  # The gateway accepted so many pings


def test_a_gateway_that_answers_no_ping_counts_as_gone(gateway: tuple[int, str]) -> None:
    pid, address = gateway
    with baton.Client(address) as client:
        assert client.model().name == "m"
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(baton.NoWorkers):  # without pings it would be DeadlineExceeded
                client.model()
        finally:
            os.kill(pid, signal.SIGCONT)
        # The gateway checks its own pings first and may close the connection of the next call.
        try:
            again = client.model()
        except baton.NoWorkers:
            again = client.model()
        assert again.name == "m"
