"""What the page is sent: whole at first, then what changes; bounded in clients, size and time."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from baton.builtin_model import CHECKPOINT
from baton.router.build import RunningRouter, start_router
from baton.router.page import feed
from baton.router.page.feed import MAX_CLIENTS
from baton.router.page.snapshots import COLUMNS
from baton.router.policy.cluster_state import ClusterState
from tests.plans import router_config
from tests.router.policy.clusters import cluster_of, decode

EVENTS = "/api/events"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "EVERY_S", 0.05)


@asynccontextmanager
async def routing(state: ClusterState) -> AsyncIterator[tuple[RunningRouter, httpx2.AsyncClient]]:
    """A router with these workers, and a client of its HTTP."""
    for view in state.workers.values():
        view.last_message_s = time.monotonic()
    running = await start_router(router_config(CHECKPOINT), state)
    limits = httpx2.Limits(max_connections=None)
    try:
        address = f"http://{running.addresses.admin_http}"
        async with httpx2.AsyncClient(base_url=address, limits=limits, timeout=20) as client:
            yield running, client
    finally:
        await running.stop(0.0)


async def snapshots(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a response."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_a_client_gets_everything_first_and_then_the_workers_that_changed() -> None:
    state = cluster_of("prefill-0", "decode-0", "decode-1")

    async def scene() -> None:
        async with routing(state) as (_, client), client.stream("GET", EVENTS) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = snapshots(response)
            whole = await anext(events)
            assert whole["whole"] and set(whole["workers"]) == {"prefill-0", "decode-0", "decode-1"}
            assert dict(zip(COLUMNS, whole["workers"]["decode-0"], strict=True))["role"] == "decode"
            assert (await anext(events))["workers"] == {}
            decode(state, "decode-1", 3)
            changed = await anext(events)
            while not changed["workers"]:
                changed = await anext(events)
            assert set(changed["workers"]) == {"decode-1"} and "whole" not in changed
            assert changed["number"] > whole["number"] and len(changed["points"]) == 1

    asyncio.run(scene())


def test_no_snapshot_is_made_while_no_client_listens() -> None:
    async def scene() -> None:
        async with routing(cluster_of("decode-0")) as (running, client):
            own = running.admin_http.feed
            async with client.stream("GET", EVENTS) as response:
                events = snapshots(response)
                await anext(events)
                await anext(events)
            async with asyncio.timeout(10):
                while own.listeners:
                    await asyncio.sleep(0.01)
            made, points = own._snapshots.number, len(own.history.points)
            async with asyncio.timeout(10):
                while len(own.history.points) < points + 3:
                    await asyncio.sleep(0.01)
            assert own._snapshots.number == made

    asyncio.run(scene())


def test_one_client_too_many_is_refused_and_may_come_when_another_has_left() -> None:
    async def scene() -> None:
        async with routing(cluster_of("decode-0")) as (running, client):
            streams = [client.stream("GET", EVENTS) for _ in range(MAX_CLIENTS)]
            for one in streams:
                assert (await one.__aenter__()).status_code == 200
            refused = await client.get(EVENTS)
            assert refused.status_code == 503 and refused.headers["x-should-retry"] == "true"
            await streams[0].__aexit__(None, None, None)
            async with asyncio.timeout(10):
                while len(running.admin_http.feed.listeners) == MAX_CLIENTS:
                    await asyncio.sleep(0.01)
            async with client.stream("GET", EVENTS) as response:
                assert response.status_code == 200
            for one in streams[1:]:
                await one.__aexit__(None, None, None)

    asyncio.run(scene())


def test_streams_end_when_the_router_stops() -> None:
    async def scene() -> None:
        async with routing(cluster_of("decode-0")) as (running, client), client.stream("GET", EVENTS) as response:
            events = snapshots(response)
            await anext(events)
            await running.stop(0.0)
            async with asyncio.timeout(5):  # The client's library raises if the stream is cut
                async for _ in events:
                    pass

    asyncio.run(scene())


def test_a_slow_client_skips_to_the_newest_state() -> None:
    async def scene() -> None:
        async with routing(cluster_of("decode-0")) as (running, _):
            own, slow, quick = running.admin_http.feed, feed.Listener(), feed.Listener()
            await own._take()
            own.listeners |= {slow, quick}
            for _ in range(3):
                quick.unsent = b""
                await own._take()
                own._publish()
            newest = own._snapshots.number
            late, punctual = (json.loads(one.unsent.removeprefix(b"data: ")) for one in (slow, quick))
            assert late["whole"] and late["number"] == punctual["number"] == newest and "whole" not in punctual

    asyncio.run(scene())


def test_a_thousand_busy_workers_take_less_than_a_tenth_of_a_second_and_little_memory() -> None:
    names = [f"prefill-{index}" for index in range(250)] + [f"decode-{index}" for index in range(750)]
    state = cluster_of(*names)
    for name in names[250:]:
        decode(state, name, 16)

    async def scene() -> tuple[float, int, int, int]:
        async with routing(state) as (running, _):
            own, seconds = running.admin_http.feed, list[float]()
            await own._take()
            whole = len(own._whole())
            for _ in range(5):
                for name in names[250:]:
                    decode(state, name, 1)
                began_s = time.process_time()
                await own._take()
                changes = len(feed._event(own._snapshots.changes))
                seconds.append(time.process_time() - began_s)
            tracemalloc.start()
            await own._take()
            own._whole()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return min(seconds), whole, changes, peak

    seconds, whole, changes, peak = asyncio.run(scene())
    print(f"{1000 * seconds:.1f} ms, whole {whole} bytes, changes {changes} bytes, peak {peak} bytes")
    assert seconds < 0.1 and peak < 50 << 20 and whole < 1 << 18 and changes < whole
