"""A gateway's process is killed or stopped: its clients get every token, and what no client claims is freed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import psutil
import pytest

import baton
from baton.builtin_model import CHECKPOINT
from baton.client.stream import AsyncTokenStream
from baton.deploy.local_ray import free_port
from baton.harness.process_cluster import ProcessCluster, plans

OPTIONS: dict[str, Any] = {"ignore_eos": True, "temperature": 0.8, "seed": 5}
PAIR = ("gateway-1", "gateway-2")  # They share a port
STREAMS = 4
CLAIM_WITHIN_S = 2.0
TIMEOUT_S = 150.0


@dataclass(eq=False)
class Deaths:
    """A cluster with a gateway in this process and two that may be killed."""

    cluster: ProcessCluster
    port: int
    runner: asyncio.Runner

    @property
    def address(self) -> str:
        """Where either gateway of the pair answers."""
        return f"127.0.0.1:{self.port}"

    def serving(self) -> str:
        """The gateway of the pair to which this process is connected: channels of one process share a connection."""
        for name in PAIR:
            process = self.cluster.processes[name]
            for each in psutil.Process(process.pid).net_connections("tcp") if process.is_alive() else ():
                if each.status == psutil.CONN_ESTABLISHED and each.laddr.port == self.port:
                    return name
        raise AssertionError("no gateway has a client")

    async def kill(self, name: str) -> None:
        """Kill the process and report its death to the router, as its supervisor would."""
        os.kill(self.cluster.processes[name].pid, signal.SIGKILL)
        await asyncio.to_thread(self.cluster.processes[name].join)
        self.cluster.router.driver.lose(name)

    async def start_again(self, name: str) -> None:
        await self.cluster.spawn_gateway(name, self.port)

    def play(self, scenario: Any) -> None:
        self.runner.run(asyncio.wait_for(scenario(self), TIMEOUT_S))
        self.runner.run(asyncio.wait_for(self.cluster.until_idle(), TIMEOUT_S))


@pytest.fixture(scope="module")
def deaths() -> Iterator[Deaths]:
    router_config, worker_config = plans(CHECKPOINT, 4096, 1200, policy="least_loaded", chunk_tokens=128)
    router_config = replace(router_config, router=router_config.router.changed(claim_within_s=CLAIM_WITHIN_S))
    cluster = ProcessCluster(router_config, worker_config, {"prefill": 1, "decode": 2})
    made = Deaths(cluster, free_port(), asyncio.Runner())

    async def start() -> None:
        await made.cluster.__aenter__()
        for name in PAIR:
            await made.start_again(name)

    with made.runner:
        made.runner.run(start())
        try:
            yield made
        finally:
            made.runner.run(made.cluster.__aexit__())


def _streams(client: baton.AsyncClient, max_tokens: int) -> list[AsyncTokenStream]:
    prompts = [[5 + index, 10] * 30 for index in range(STREAMS)]
    return [client.stream(prompt, max_tokens=max_tokens, **OPTIONS) for prompt in prompts]


async def _resume(deaths: Deaths) -> None:
    core = deaths.cluster.router.driver.core
    async with baton.AsyncClient(deaths.cluster.address) as client:
        expected = await asyncio.gather(*(stream.answer() for stream in _streams(client, 400)))
    async with baton.AsyncClient(deaths.address) as client:
        streams = _streams(client, 400)
        for stream in streams:
            for _ in range(3):
                await anext(stream)
        await deaths.cluster.until(lambda: all(record.decoding for record in core.requests.live.values()))
        victim = deaths.serving()
        await deaths.kill(victim)
        answers = await asyncio.gather(*(stream.answer() for stream in streams))
        assert deaths.serving() != victim
    for answer, undisturbed in zip(answers, expected, strict=True):
        assert answer.token_ids == undisturbed.token_ids
        assert answer.text == undisturbed.text
        assert [token.index for token in answer.tokens] == list(range(len(answer.tokens)))
        assert answer.attempts == 1  # The sequence went on where it ran
    assert all(stream._history.breaks == 1 for stream in streams)
    await deaths.start_again(victim)


def test_clients_of_a_killed_gateway_resume_at_another_one(deaths: Deaths) -> None:
    deaths.play(_resume)


async def _leave(deaths: Deaths) -> None:
    core = deaths.cluster.router.driver.core
    cancelled = core.explanations.cancelled
    async with baton.AsyncClient(deaths.address, give_up_s=0.0) as client:
        streams = _streams(client, 3900)
        for stream in streams:
            await anext(stream)
        victim = deaths.serving()
        await deaths.kill(victim)
        for stream in streams:
            with pytest.raises(baton.NoWorkers):
                await stream.answer()
    assert core.live == STREAMS  # A client may come back for them
    await deaths.cluster.until_idle()
    assert core.explanations.cancelled == cancelled + STREAMS
    await deaths.start_again(victim)


def test_requests_that_no_client_claims_are_stopped_and_free_their_pages(deaths: Deaths) -> None:
    deaths.play(_leave)


async def _others(deaths: Deaths) -> None:
    async with baton.AsyncClient(deaths.cluster.address) as others, baton.AsyncClient(deaths.address) as client:
        mine, theirs = _streams(client, 300), _streams(others, 300)
        for stream in (*mine, *theirs):
            await anext(stream)
        victim = deaths.serving()
        await deaths.kill(victim)
        answers = await asyncio.gather(*(stream.answer() for stream in theirs))
        resumed = await asyncio.gather(*(stream.answer() for stream in mine))
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in resumed]
    assert all(stream._history.breaks == 0 for stream in theirs)
    await deaths.start_again(victim)


def test_streams_of_other_gateways_do_not_notice(deaths: Deaths) -> None:
    deaths.play(_others)


async def _stopped(deaths: Deaths) -> None:
    async with baton.AsyncClient(deaths.cluster.address) as others, baton.AsyncClient(deaths.address) as client:
        mine, theirs = _streams(client, 300), _streams(others, 300)
        for stream in (*mine, *theirs):
            await anext(stream)
        pid = deaths.cluster.processes[deaths.serving()].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            answers = await asyncio.gather(*(stream.answer() for stream in theirs))
        finally:
            os.kill(pid, signal.SIGCONT)
        late = await asyncio.gather(*(stream.answer() for stream in mine))
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in late]
    assert not any(stream._history.breaks for stream in (*mine, *theirs))


def test_a_gateway_that_stands_still_delays_only_its_own_streams(deaths: Deaths) -> None:
    deaths.play(_stopped)
