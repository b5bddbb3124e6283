"""Failures that others reported of their systems, where processes matter: router, workers and NIXL as they are."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import baton
from benchmarks.process_cluster import ProcessCluster, plans
from cluster.worker import WorkerInfo

PROMPT = [7, 8, 9] * 14
OPTIONS: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "temperature": 0.8, "seed": 5}
Scenario = Callable[[ProcessCluster, baton.AsyncClient], Awaitable[Any]]
Run = Callable[[Scenario], Any]


@pytest.fixture(scope="module")
def run(checkpoint: Path) -> Iterator[Run]:
    """Plays scenarios on one cluster of 1 + 2 workers, each of which leaves it whole."""
    with asyncio.Runner() as runner:
        router_plan, worker_plan = plans(checkpoint, 256, 256, policy="least_loaded", chunk_tokens=64, lost_after_s=2.0)
        cluster = ProcessCluster(router_plan, worker_plan, {"prefill": 1, "decode": 2})
        runner.run(cluster.__aenter__())

        async def play(scenario: Scenario) -> Any:
            async with baton.AsyncClient(f"127.0.0.1:{cluster.router.port}") as client:
                seen = await asyncio.wait_for(scenario(cluster, client), 60)
            core = cluster.router.driver.core
            await cluster.until(lambda: not core.live)
            await cluster.until(lambda: not any(view.load.pages_owned for view in core.state.workers.values()))
            return seen

        try:
            yield lambda scenario: runner.run(play(scenario))
        finally:
            runner.run(cluster.__aexit__())


async def _kill(cluster: ProcessCluster, name: str) -> None:
    """End the process; whoever watches it tells the router."""
    os.kill(cluster.processes[name].pid, signal.SIGKILL)
    await asyncio.to_thread(cluster.processes[name].join)
    cluster.router.driver.lose(name)


async def _again(cluster: ProcessCluster, name: str) -> None:
    cluster.spawn(name, name.split("-")[0])
    await cluster.until(lambda: name in cluster.router.driver.core.state.workers)


async def _handoff(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
    answer = await client.generate([11] * 100, **OPTIONS)
    workers = cluster.router.driver.core.state.workers
    assert answer.handoff is not None
    assert answer.handoff.pages_sent >= 6
    assert answer.handoff.bytes_sent == answer.handoff.pages_sent * workers["prefill-0"].info.page_bytes
    source, target = workers[answer.prefill_worker].info, workers[answer.decode_worker].info
    assert len({source.pid, target.pid, os.getpid()}) == 3
    assert (source.device, target.device) == ("cpu", "cpu")


def test_disaggregation_is_tested_without_a_gpu(run: Run) -> None:
    """Ray 63257: pages really go from one process to another."""
    run(_handoff)


@dataclass(frozen=True)
class WithoutPrefill:
    """The only prefill worker is killed while a stream decodes, and later comes back."""

    expected: list[int]
    running: baton.Answer  # of the stream that decoded
    alone: baton.Answer  # of a request that came while nobody else was there
    later: baton.Answer  # of one after its return
    before: dict[str, WorkerInfo]
    after: dict[str, WorkerInfo]


async def _without_prefill(cluster: ProcessCluster, client: baton.AsyncClient) -> WithoutPrefill:
    core = cluster.router.driver.core
    expected = (await client.generate(PROMPT, **OPTIONS)).token_ids
    before = {name: view.info for name, view in core.state.workers.items()}
    stream = client.stream(PROMPT, **OPTIONS)
    await anext(stream)
    await cluster.until(lambda: any(record.decoding for record in core._records.values()))
    await _kill(cluster, "prefill-0")
    running = await stream.answer()
    alone = await client.generate(PROMPT, **OPTIONS)
    await _again(cluster, "prefill-0")
    after = {name: view.info for name, view in core.state.workers.items()}
    later = await client.generate([12] * 100, **OPTIONS)
    return WithoutPrefill(expected, running, alone, later, before, after)


@pytest.fixture(scope="module")
def without_prefill(run: Run) -> WithoutPrefill:
    return run(_without_prefill)  # type: ignore[no-any-return]


def test_a_decode_worker_outlives_its_prefill_worker(without_prefill: WithoutPrefill) -> None:
    """sglang 16903."""
    assert without_prefill.running.token_ids == without_prefill.expected
    assert without_prefill.running.attempts == 1
    for name in ("decode-0", "decode-1"):  # nobody had to be started again
        assert without_prefill.after[name] == without_prefill.before[name]


def test_without_prefill_workers_decode_workers_serve(without_prefill: WithoutPrefill) -> None:
    """sglang 14284."""
    alone = without_prefill.alone
    assert alone.token_ids == without_prefill.expected
    assert alone.handoff is None
    assert alone.prefill_worker == alone.decode_worker


def test_a_restarted_worker_has_a_new_agent_name(without_prefill: WithoutPrefill) -> None:
    """vllm 49238."""
    former, present = (infos["prefill-0"].endpoint for infos in (without_prefill.before, without_prefill.after))
    assert present.agent != former.agent
    assert without_prefill.later.prefill_worker == "prefill-0"
    assert without_prefill.later.handoff is not None


async def _failure_after_the_first_token(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
    undisturbed = await client.generate(PROMPT, **OPTIONS)
    stream = client.stream(PROMPT, **OPTIONS)
    await anext(stream)
    core = cluster.router.driver.core
    await cluster.until(lambda: any(record.decoding for record in core._records.values()))
    (record,) = core._records.values()
    victim = record.decode_worker
    await _kill(cluster, victim)
    answer = await stream.answer()
    assert answer.attempts == 2
    assert answer.token_ids == undisturbed.token_ids
    assert answer.text == undisturbed.text
    assert [token.index for token in answer.tokens] == list(range(OPTIONS["max_tokens"]))
    await _again(cluster, victim)


def test_a_stream_goes_on_with_the_same_random_numbers_after_a_failure(run: Run) -> None:
    """Dynamo's documentation, Ray 62953."""
    run(_failure_after_the_first_token)
