"""Gateways behind network cables that are cut from workers or from the router: no token is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from operator import lt

import pytest

import baton
from baton.client.stream import AsyncTokenStream
from tests.live.wired import (
    FAR_GATEWAY,
    Wired,
    all_decoding,
    check,
    check_tokens,
    incarnations,
    streams_decoding,
    tokens_within,
    wire,
)
from tests.reliability.cables import why_not

_WHY_NOT = why_not()

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)]


@pytest.fixture(scope="module")
def wired() -> Iterator[Wired]:
    with wire() as made:
        yield made


async def _read(stream: AsyncTokenStream, tokens: list[baton.Token]) -> None:
    """Add tokens until the stream is cancelled."""
    with contextlib.suppress(baton.Cancelled):
        async for token in stream:
            tokens.append(token)


async def _from_the_gateway(wired: Wired, client: baton.AsyncClient) -> None:
    """A worker reaches router and peers but not the gateway: what it decodes for it starts over elsewhere."""
    core, before = wired.cluster.router.driver.core, incarnations(wired)
    victim, streams, first = await streams_decoding(wired, client, 7, max_tokens=3000)  # It takes 7 s to find the cut
    received = [[token] for token in first]
    reading = asyncio.gather(*map(_read, streams, received))
    wired.cables.cut_to(victim, wired.cables.address, wired.gateway_port)
    live = list(core.requests.live.values())
    await wired.cluster.until(lambda: all(record.decoding and record.decode_worker != victim for record in live))
    assert victim in core.state.cut["gateway-0"]
    assert {record.attempts for record in live} == {1, 2}
    so_far = list(map(len, received))
    await wired.cluster.until(lambda: all(map(lt, so_far, map(len, received))))
    assert not reading.done()
    for stream in streams:
        stream.cancel()
    await reading
    await check_tokens(client, received, 7)  # while the cable is still cut
    wired.cables.heal(victim)
    await wired.cluster.until(lambda: not core.state.cut)
    assert incarnations(wired) == before


def test_requests_of_a_worker_that_cannot_reach_their_gateway_start_over_elsewhere(wired: Wired) -> None:
    wired.play(_from_the_gateway)


async def _gateway_from_the_router(wired: Wired, client: baton.AsyncClient) -> None:
    """Streams go on while their gateway does not reach the router, which gives it up, and end after its return."""
    gateways = wired.cluster.router.driver.core.gateways
    async with baton.AsyncClient(wired.far_address, give_up_s=0.0) as far:
        long = await tokens_within(8.0, far, 11, at_most=3000)  # It takes 3 s to give it up
        _, answers = await all_decoding(wired, far, 10, max_tokens=long)
        wired.cables.cut_to(FAR_GATEWAY, wired.cables.address, wired.worker_port)
        wired.cables.cut_from(FAR_GATEWAY, wired.cables.address, wired.worker_port)
        await wired.cluster.until(lambda: FAR_GATEWAY not in gateways)
        assert not answers.done()
        wired.cables.heal(FAR_GATEWAY)
        await answers
    await wired.cluster.until(lambda: FAR_GATEWAY in gateways)
    await check(client, answers.result(), 10)


def test_streams_go_on_while_their_gateway_is_cut_off_from_the_router(wired: Wired) -> None:
    wired.play(_gateway_from_the_router)


async def _ended_out_of_reach(wired: Wired, client: baton.AsyncClient) -> None:
    """The router is told that the sequences have ended, but their last tokens do not arrive."""
    state = wired.cluster.router.driver.core.state
    victim, answers = await all_decoding(wired, client, 9)
    wired.cables.cut_to(victim, wired.cables.address, wired.gateway_port)
    await check(client, await answers, 9)  # while the cable is still cut
    wired.cables.heal(victim)
    await wired.cluster.until(lambda: not state.cut)


def test_tokens_that_do_not_arrive_before_their_sequence_ends_are_computed_again(wired: Wired) -> None:
    wired.play(_ended_out_of_reach)


async def _briefly_from_the_gateway(wired: Wired, client: baton.AsyncClient) -> None:
    """Tokens that a worker decodes while it does not reach the gateway arrive once it does."""
    state = wired.cluster.router.driver.core.state
    victim, answers = await all_decoding(wired, client, 8)
    steps = state.workers[victim].load.decode_steps
    wired.cables.cut_to(victim, wired.cables.address, wired.gateway_port)
    await wired.cluster.until(lambda: state.workers[victim].load.decode_steps > steps + 10)
    assert not answers.done()
    wired.cables.heal(victim)
    assert {answer.attempts for answer in await answers} == {1}
    assert not state.cut
    await check(client, answers.result(), 8)


def test_a_short_cut_between_worker_and_gateway_costs_a_pause_only(wired: Wired) -> None:
    wired.play(_briefly_from_the_gateway)
