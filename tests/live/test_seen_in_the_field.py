"""Failures reported for other systems that need real processes: router, workers and NIXL."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest

import baton
from baton.harness.process_cluster import ProcessCluster
from baton.protocol.worker import WorkerInfo
from tests.live.processes import Play, kill, start_again

PROMPT = [7, 8, 9] * 14
OPTIONS: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "temperature": 0.8, "seed": 5}


async def _handoff(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
    answer = await client.generate([11] * 100, **OPTIONS)
    workers = cluster.router.driver.core.state.workers
    assert answer.handoff is not None
    assert answer.handoff.pages_sent >= 6
    assert answer.handoff.bytes_sent == answer.handoff.pages_sent * workers["prefill-0"].info.page_bytes
    source, target = workers[answer.prefill_worker].info, workers[answer.decode_worker].info
    assert len({source.pid, target.pid, os.getpid()}) == 3
    assert (source.device, target.device) == ("cpu", "cpu")


def test_disaggregation_is_tested_without_a_gpu(play: Play) -> None:
    """Ray 63257: pages are transferred between processes on CPUs."""
    play(_handoff)


@dataclass(frozen=True)
class WithoutPrefill:
    """Answers around the death and return of the only prefill worker."""

    expected: list[int]
    running: baton.Answer  # decoding when the worker was killed
    alone: baton.Answer  # requested while only decode workers were left
    later: baton.Answer  # requested after its return
    before: dict[str, WorkerInfo]
    after: dict[str, WorkerInfo]


async def _without_prefill(cluster: ProcessCluster, client: baton.AsyncClient) -> WithoutPrefill:
    core = cluster.router.driver.core
    expected = (await client.generate(PROMPT, **OPTIONS)).token_ids
    before = {name: view.info for name, view in core.state.workers.items()}
    stream = client.stream(PROMPT, **OPTIONS)
    await anext(stream)
    await cluster.until(lambda: any(record.decoding for record in core.requests.live.values()))
    await kill(cluster, "prefill-0")
    running = await stream.answer()
    alone = await client.generate(PROMPT, **OPTIONS)
    await start_again(cluster, "prefill-0")
    after = {name: view.info for name, view in core.state.workers.items()}
    later = await client.generate([12] * 100, **OPTIONS)
    return WithoutPrefill(expected, running, alone, later, before, after)


@pytest.fixture(scope="module")
def without_prefill(play: Play) -> WithoutPrefill:
    return play(_without_prefill)  # type: ignore[no-any-return]


def test_a_decode_worker_outlives_its_prefill_worker(without_prefill: WithoutPrefill) -> None:
    """sglang 16903."""
    assert without_prefill.running.token_ids == without_prefill.expected
    assert without_prefill.running.attempts == 1
    for name in ("decode-0", "decode-1"):  # no decode worker was restarted
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
    await cluster.until(lambda: any(record.decoding for record in core.requests.live.values()))
    (record,) = core.requests.live.values()
    victim = record.decode_worker
    await kill(cluster, victim)
    answer = await stream.answer()
    assert answer.attempts == 2
    assert answer.token_ids == undisturbed.token_ids
    assert answer.text == undisturbed.text
    assert [token.index for token in answer.tokens] == list(range(OPTIONS["max_tokens"]))
    await start_again(cluster, victim)


def test_a_stream_continues_with_the_same_random_numbers_after_a_failure(play: Play) -> None:
    """Dynamo's documentation; Ray 62953."""
    play(_failure_after_the_first_token)
