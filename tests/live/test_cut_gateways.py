"""Gateways behind network cables that are cut from workers or from the router: no token is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import baton
from tests.live.wired import FAR_GATEWAY, Wired, all_decoding, check, incarnations, wire
from tests.reliability.cables import why_not

_WHY_NOT = why_not()

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)]


@pytest.fixture(scope="module")
def wired() -> Iterator[Wired]:
    with wire() as made:
        yield made


async def _from_the_gateway(wired: Wired, client: baton.AsyncClient) -> None:
    """A worker reaches router and peers but not the gateway: what it decodes for it starts over elsewhere."""
    state, before = wired.cluster.router.driver.core.state, incarnations(wired)
    victim, answers = await all_decoding(wired, client, 7, max_tokens=3000)  # It takes 7 s to find the cut
    wired.cables.cut_to(victim, wired.cables.address, wired.gateway_port)
    await answers
    assert victim in state.cut["gateway-0"]
    moved = [answer for answer in answers.result() if answer.attempts == 2]
    assert moved
    assert victim not in {answer.decode_worker for answer in moved}
    await check(client, answers.result(), 7)  # while the cable is still cut
    wired.cables.heal(victim)
    await wired.cluster.until(lambda: not state.cut)
    assert incarnations(wired) == before


def test_requests_of_a_worker_that_cannot_reach_their_gateway_start_over_elsewhere(wired: Wired) -> None:
    wired.play(_from_the_gateway)


async def _gateway_from_the_router(wired: Wired, client: baton.AsyncClient) -> None:
    """Streams go on while their gateway does not reach the router, which gives it up, and end after its return."""
    gateways = wired.cluster.router.driver.core.gateways
    async with baton.AsyncClient(wired.far_address, give_up_s=0.0) as far:
        _, answers = await all_decoding(wired, far, 10, max_tokens=3000)
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
