"""Workers behind network cables that are cut: they are given up and fenced, and return when the cable is healed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import baton
from baton.router.core.operation import Migrate
from tests.live.wired import OPTIONS, Wired, all_decoding, check, incarnations, new_streams, wire
from tests.reliability.cables import why_not

_WHY_NOT = why_not()

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)]


@pytest.fixture(scope="module")
def wired() -> Iterator[Wired]:
    with wire() as made:
        yield made


async def _cut_and_back(wired: Wired, victim: str, answers: asyncio.Future[list[baton.Answer]]) -> None:
    """Wait until the router has given up the victim and others have answered; heal it and expect a new incarnation."""
    state, membership = wired.cluster.router.driver.core.state, wired.cluster.router.driver.core.membership
    before = state.workers[victim].info
    await wired.cluster.until(lambda: victim not in state.workers)
    await answers
    assert victim in membership._away  # it may be alive: pages it may write to stay fenced
    wired.cables.heal(victim)
    await wired.cluster.until(lambda: victim in state.workers)
    after = state.workers[victim].info
    assert after.incarnation != before.incarnation
    assert after.endpoint.agent != before.endpoint.agent
    assert after.pid == before.pid


async def _decode_worker(wired: Wired, client: baton.AsyncClient) -> None:
    victim, answers = await all_decoding(wired, client, 1)
    wired.cables.cut(victim)
    await _cut_and_back(wired, victim, answers)
    assert max(answer.attempts for answer in answers.result()) == 2
    await check(client, answers.result(), 1)


def test_a_decode_worker_that_is_cut_off_costs_a_pause_and_returns(wired: Wired) -> None:
    wired.play(_decode_worker)


async def _prefill_worker(wired: Wired, client: baton.AsyncClient) -> None:
    core = wired.cluster.router.driver.core
    streams = new_streams(client, 2)
    answers = asyncio.gather(*(stream.answer() for stream in streams))
    await wired.cluster.until(lambda: len(core.membership.transfers) > 0)
    wired.cables.cut("prefill-0")
    await _cut_and_back(wired, "prefill-0", answers)
    await check(client, answers.result(), 2)


def test_a_prefill_worker_may_be_cut_off_during_a_transfer(wired: Wired) -> None:
    wired.play(_prefill_worker)


async def _one_way(wired: Wired, client: baton.AsyncClient) -> None:
    """The worker receives from the router and reaches its peers, but its messages do not reach the router."""
    victim, answers = await all_decoding(wired, client, 3)
    wired.cables.cut_to(victim, wired.cables.address, wired.worker_port)
    await _cut_and_back(wired, victim, answers)
    await check(client, answers.result(), 3)


def test_a_worker_whose_messages_do_not_reach_the_router_is_given_up(wired: Wired) -> None:
    wired.play(_one_way)


def _cut_peers(wired: Wired, one: str, other: str) -> None:
    """Cut the connection between two workers; both still reach the router."""
    wired.cables.cut_to(one, wired.cables.address_of(other))
    wired.cables.cut_from(one, wired.cables.address_of(other))


async def _heal_and_wait(wired: Wired, name: str) -> None:
    """Heal the cable: delayed writes arrive without effect, and the worker is used again."""
    core = wired.cluster.router.driver.core
    wired.cables.heal(name)
    await wired.cluster.until(lambda: not core.state.unreachable)
    await wired.cluster.until(lambda: len(core.membership.transfers) == 0)


async def _between_peers(wired: Wired, client: baton.AsyncClient) -> None:
    """Pages do not reach one decode worker: requests go to the other one while the cable stays cut."""
    core, before = wired.cluster.router.driver.core, incarnations(wired)
    _cut_peers(wired, "decode-0", "prefill-0")
    answers = await asyncio.gather(*(stream.answer() for stream in new_streams(client, 4)))
    assert core.state.unreachable == {"prefill-0": {"decode-0"}, "decode-0": {"prefill-0"}}
    assert len(core.membership.transfers) > 0  # a stalled write may still arrive: its pages stay held
    assert {answer.decode_worker for answer in answers} == {"decode-1"}
    await check(client, answers, 4)  # while the cable is still cut
    await _heal_and_wait(wired, "decode-0")
    again = await asyncio.gather(*(stream.answer() for stream in new_streams(client, 5)))
    assert "decode-0" in {answer.decode_worker for answer in again}
    assert incarnations(wired) == before


def test_requests_continue_while_two_workers_cannot_exchange_pages(wired: Wired) -> None:
    wired.play(_between_peers)


async def _no_decode_worker(wired: Wired, client: baton.AsyncClient) -> None:
    """The prefill worker reaches no decode worker: the decode workers compute the prompts themselves."""
    core = wired.cluster.router.driver.core
    for name in ("decode-0", "decode-1"):
        _cut_peers(wired, name, "prefill-0")
    answers = await asyncio.gather(*(stream.answer() for stream in new_streams(client, 6)))
    assert core.state.unreachable["prefill-0"] == {"decode-0", "decode-1"}
    for name in ("decode-0", "decode-1"):
        wired.cables.heal(name)
    await _heal_and_wait(wired, "decode-0")
    await check(client, answers, 6)


def test_a_prefill_worker_without_a_reachable_decode_worker_is_bypassed(wired: Wired) -> None:
    wired.play(_no_decode_worker)


async def _moving(wired: Wired, client: baton.AsyncClient) -> None:
    """A sequence that is migrated over a cut cable continues on its source worker."""
    core = wired.cluster.router.driver.core
    _cut_peers(wired, "decode-0", "decode-1")
    stream = client.stream([3, 17] * 150, seed=7, **{**OPTIONS, "max_tokens": 600})
    await anext(stream)
    (record,) = core.requests.live.values()
    await wired.cluster.until(lambda: record.decoding)
    home = record.decode_worker
    (other,) = {"decode-0", "decode-1"} - {home}
    wired.cluster.router.driver.start_operation("", Migrate(record.request_id, other), dry_run=False)
    answer = await stream.answer()
    assert (answer.decode_worker, answer.migrations) == (home, 0)
    await _heal_and_wait(wired, "decode-0")
    undisturbed = await client.stream([3, 17] * 150, seed=7, **{**OPTIONS, "max_tokens": 600}).answer()
    assert answer.token_ids == undisturbed.token_ids


def test_a_sequence_whose_pages_cannot_reach_its_target_stays(wired: Wired) -> None:
    wired.play(_moving)
