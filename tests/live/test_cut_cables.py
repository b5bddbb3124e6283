"""Workers behind network cables that are cut: they are given up and fenced, and return when the cable is healed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest

import baton
from baton.builtin_model import CHECKPOINT
from baton.client.stream import AsyncTokenStream
from baton.harness.process_cluster import ProcessCluster, plans
from baton.router.core.breaker import Breaker
from baton.router.core.operation import Migrate
from tests.reliability.cables import DEVICE, Cables, enter, why_not
from tests.reliability.leaks import check_pages

OPTIONS: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "temperature": 0.8}
ENVIRONMENT = {"UCX_TLS": "tcp", "UCX_NET_DEVICES": DEVICE}  # shared memory needs no cable
POOLS = {"prefill": 1, "decode": 2}
WRITE_STALL_S = 2.0
TIMEOUT_S = 150.0
_WHY_NOT = why_not()

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)]


@dataclass(eq=False)
class Wired:
    """A cluster of processes, each worker behind its own cable."""

    cables: Cables
    cluster: ProcessCluster
    runner: asyncio.Runner

    @property
    def worker_port(self) -> int:
        return int(self.cluster.router.worker_address.rsplit(":", 1)[1])

    @property
    def gateway_port(self) -> int:
        """The gateway's, for workers."""
        return int(self.cluster.gateway.addresses.worker.rsplit(":", 1)[1])

    def play(self, scenario: Any, *arguments: Any) -> None:
        """Run a scenario, then check that no page is held and every worker is registered."""
        self.runner.run(asyncio.wait_for(self._play(scenario, *arguments), TIMEOUT_S))

    async def _play(self, scenario: Any, *arguments: Any) -> None:
        core = self.cluster.router.driver.core
        async with baton.AsyncClient(self.cluster.address) as client:
            try:
                await scenario(self, client, *arguments)
            finally:
                for name, _ in self.cluster.names:
                    self.cables.heal(name)
        await self.cluster.until(lambda: len(core.state.workers) == len(self.cluster.names))
        await self.cluster.until(lambda: not core.live)
        await self.cluster.until(lambda: not any(view.load.pages_in_use for view in core.state.workers.values()))
        check = await check_pages(self.cluster.admin_address, 1.0)
        assert check.clean, check
        assert len(core.membership.transfers) == 0
        core.membership.breaker = Breaker()  # these tests are no reason to distrust a worker


@pytest.fixture(scope="module")
def wired() -> Iterator[Wired]:
    with Cables() as cables, asyncio.Runner() as runner:
        router_config, worker_config = plans(CHECKPOINT, 4096, 1200, policy="least_loaded", chunk_tokens=64)
        router_config = replace(
            router_config, worker_host=cables.address, router=router_config.router.changed(lost_after_s=2.0)
        )
        worker_config = replace(worker_config, engine=worker_config.engine.changed(write_stall_s=WRITE_STALL_S))
        cluster = ProcessCluster(router_config, worker_config, POOLS)
        cluster.first = {name: partial(enter, cables.namespace(name)) for name, _ in cluster.names}
        cluster.environment = ENVIRONMENT
        for name, _ in cluster.names:
            cables.plug(name)
        runner.run(cluster.__aenter__())
        try:
            yield Wired(cables, cluster, runner)
        finally:
            runner.run(cluster.__aexit__())


def _streams(client: baton.AsyncClient, mark: int, max_tokens: int = 200) -> list[AsyncTokenStream]:
    """Streams with new prompts, so that no page is cached and all pages are transferred."""
    prompts = [[5 + index, 10 + mark] * (150 + index) for index in range(4)]
    options = {**OPTIONS, "max_tokens": max_tokens}
    return [client.stream(prompt, seed=index, **options) for index, prompt in enumerate(prompts)]


async def _check(client: baton.AsyncClient, answers: list[baton.Answer], mark: int) -> None:
    """The answers are those of an undisturbed cluster, each index once."""
    streams = _streams(client, mark, answers[0].output_tokens)
    undisturbed = await asyncio.gather(*(stream.answer() for stream in streams))
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in undisturbed]
    for answer in answers:
        assert [token.index for token in answer.tokens] == list(range(len(answer.tokens)))


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


async def _all_decoding(
    wired: Wired, client: baton.AsyncClient, mark: int, max_tokens: int = 200
) -> tuple[str, asyncio.Future[list[baton.Answer]]]:
    """Starts streams and waits until all of them decode: the first one's decode worker, and the answers to come."""
    core = wired.cluster.router.driver.core
    streams = _streams(client, mark, max_tokens)
    await asyncio.gather(*(anext(stream) for stream in streams))
    await wired.cluster.until(lambda: all(record.decoding for record in core.requests.live.values()))
    victim = next(iter(core.requests.live.values())).decode_worker
    return victim, asyncio.gather(*(stream.answer() for stream in streams))


async def _decode_worker(wired: Wired, client: baton.AsyncClient) -> None:
    victim, answers = await _all_decoding(wired, client, 1)
    wired.cables.cut(victim)
    await _cut_and_back(wired, victim, answers)
    assert max(answer.attempts for answer in answers.result()) == 2
    await _check(client, answers.result(), 1)


def test_a_decode_worker_that_is_cut_off_costs_a_pause_and_returns(wired: Wired) -> None:
    wired.play(_decode_worker)


async def _prefill_worker(wired: Wired, client: baton.AsyncClient) -> None:
    core = wired.cluster.router.driver.core
    streams = _streams(client, 2)
    answers = asyncio.gather(*(stream.answer() for stream in streams))
    await wired.cluster.until(lambda: len(core.membership.transfers) > 0)
    wired.cables.cut("prefill-0")
    await _cut_and_back(wired, "prefill-0", answers)
    await _check(client, answers.result(), 2)


def test_a_prefill_worker_may_be_cut_off_during_a_transfer(wired: Wired) -> None:
    wired.play(_prefill_worker)


async def _one_way(wired: Wired, client: baton.AsyncClient) -> None:
    """The worker receives from the router and reaches its peers, but its messages do not reach the router."""
    victim, answers = await _all_decoding(wired, client, 3)
    wired.cables.cut_to(victim, wired.cables.address, wired.worker_port)
    await _cut_and_back(wired, victim, answers)
    await _check(client, answers.result(), 3)


def test_a_worker_whose_messages_do_not_reach_the_router_is_given_up(wired: Wired) -> None:
    wired.play(_one_way)


def _incarnations(wired: Wired) -> dict[str, str]:
    return {name: view.info.incarnation for name, view in wired.cluster.router.driver.core.state.workers.items()}


async def _from_the_gateway(wired: Wired, client: baton.AsyncClient) -> None:
    """A worker reaches router and peers but not the gateway: what it decodes for it starts over elsewhere."""
    state, before = wired.cluster.router.driver.core.state, _incarnations(wired)
    victim, answers = await _all_decoding(wired, client, 7, max_tokens=3000)  # It takes 7 s to find the cut
    wired.cables.cut_to(victim, wired.cables.address, wired.gateway_port)
    await answers
    assert victim in state.cut["gateway-0"]
    moved = [answer for answer in answers.result() if answer.attempts == 2]
    assert moved
    assert victim not in {answer.decode_worker for answer in moved}
    await _check(client, answers.result(), 7)  # while the cable is still cut
    wired.cables.heal(victim)
    await wired.cluster.until(lambda: not state.cut)
    assert _incarnations(wired) == before


def test_requests_of_a_worker_that_cannot_reach_their_gateway_start_over_elsewhere(wired: Wired) -> None:
    wired.play(_from_the_gateway)


async def _ended_out_of_reach(wired: Wired, client: baton.AsyncClient) -> None:
    """The router is told that the sequences have ended, but their last tokens do not arrive."""
    state = wired.cluster.router.driver.core.state
    victim, answers = await _all_decoding(wired, client, 9)
    wired.cables.cut_to(victim, wired.cables.address, wired.gateway_port)
    await _check(client, await answers, 9)  # while the cable is still cut
    wired.cables.heal(victim)
    await wired.cluster.until(lambda: not state.cut)


def test_tokens_that_do_not_arrive_before_their_sequence_ends_are_computed_again(wired: Wired) -> None:
    wired.play(_ended_out_of_reach)


async def _briefly_from_the_gateway(wired: Wired, client: baton.AsyncClient) -> None:
    """Tokens that a worker decodes while it does not reach the gateway arrive once it does."""
    state = wired.cluster.router.driver.core.state
    victim, answers = await _all_decoding(wired, client, 8)
    steps = state.workers[victim].load.decode_steps
    wired.cables.cut_to(victim, wired.cables.address, wired.gateway_port)
    await wired.cluster.until(lambda: state.workers[victim].load.decode_steps > steps + 10)
    assert not answers.done()
    wired.cables.heal(victim)
    assert {answer.attempts for answer in await answers} == {1}
    assert not state.cut
    await _check(client, answers.result(), 8)


def test_a_short_cut_between_worker_and_gateway_costs_a_pause_only(wired: Wired) -> None:
    wired.play(_briefly_from_the_gateway)


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
    core, before = wired.cluster.router.driver.core, _incarnations(wired)
    _cut_peers(wired, "decode-0", "prefill-0")
    answers = await asyncio.gather(*(stream.answer() for stream in _streams(client, 4)))
    assert core.state.unreachable == {"prefill-0": {"decode-0"}, "decode-0": {"prefill-0"}}
    assert len(core.membership.transfers) > 0  # a stalled write may still arrive: its pages stay held
    assert {answer.decode_worker for answer in answers} == {"decode-1"}
    await _check(client, answers, 4)  # while the cable is still cut
    await _heal_and_wait(wired, "decode-0")
    again = await asyncio.gather(*(stream.answer() for stream in _streams(client, 5)))
    assert "decode-0" in {answer.decode_worker for answer in again}
    assert _incarnations(wired) == before


def test_requests_continue_while_two_workers_cannot_exchange_pages(wired: Wired) -> None:
    wired.play(_between_peers)


async def _no_decode_worker(wired: Wired, client: baton.AsyncClient) -> None:
    """The prefill worker reaches no decode worker: the decode workers compute the prompts themselves."""
    core = wired.cluster.router.driver.core
    for name in ("decode-0", "decode-1"):
        _cut_peers(wired, name, "prefill-0")
    answers = await asyncio.gather(*(stream.answer() for stream in _streams(client, 6)))
    assert core.state.unreachable["prefill-0"] == {"decode-0", "decode-1"}
    for name in ("decode-0", "decode-1"):
        wired.cables.heal(name)
    await _heal_and_wait(wired, "decode-0")
    await _check(client, answers, 6)


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
