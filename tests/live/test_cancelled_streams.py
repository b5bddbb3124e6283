"""Cancelling a stream of the asyncio client ends that stream, not the task that reads it."""

from __future__ import annotations

import asyncio

import pytest

import baton
from baton.client.errors import Cancelled, DeadlineExceeded
from baton.harness.process_cluster import ProcessCluster
from tests.live.processes import Play


@pytest.mark.parametrize("begun", [True, False])
def test_a_cancelled_stream_is_an_error_of_its_own(play: Play, begun: bool) -> None:
    async def leave(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
        before = cluster.router.driver.core.explanations
        failed, cancelled = before.failed, before.cancelled
        stream = client.stream([6] * 30, max_tokens=150, ignore_eos=True)
        if begun:
            await anext(stream)
        reader = asyncio.create_task(stream.answer())
        await asyncio.sleep(0)
        stream.cancel()
        with pytest.raises(Cancelled):
            await reader
        await cluster.until(lambda: not cluster.router.driver.core.live)
        ended = cluster.router.driver.core.explanations
        assert ended.failed == failed
        # A request that was cancelled before it began may not have reached the router.
        assert cancelled + begun <= ended.cancelled <= cancelled + 1

    play(leave)


def test_a_request_that_its_deadline_ended_has_failed(play: Play) -> None:
    async def wait(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
        before = cluster.router.driver.core.explanations
        failed, cancelled = before.failed, before.cancelled
        with pytest.raises(DeadlineExceeded):
            await client.generate([6] * 30, max_tokens=900, ignore_eos=True, timeout_s=0.3)
        await cluster.until(lambda: not cluster.router.driver.core.live)
        ended = cluster.router.driver.core.explanations
        assert (ended.failed, ended.cancelled) == (failed + 1, cancelled)

    play(wait)


def test_a_cancelled_reader_is_cancelled(play: Play) -> None:
    async def leave(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
        stream = client.stream([6] * 30, max_tokens=150, ignore_eos=True)
        reader = asyncio.create_task(stream.answer())
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        stream.cancel()

    play(leave)
