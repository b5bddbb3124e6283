"""Pools whose workers have unequal numbers of ranks give the tokens of one worker of one rank."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

import baton
from baton.harness.process_cluster import ProcessCluster, plans
from tests.live.requests import cases, run_all

WANTED = cases(100)


async def _run(folder: Path, pools: Mapping[str, int], ranks: Mapping[str, int]) -> list[baton.Answer]:
    """The answers of a cluster that compares every page which it hands over, and holds nothing afterwards."""
    router_config, worker_config = plans(folder, 256, 600, policy="least_loaded", chunk_tokens=64)
    async with ProcessCluster(router_config, worker_config, pools, ranks) as cluster:
        views = cluster.router.driver.core.state.workers.values()
        assert {view.role.value: view.info.num_ranks for view in views} == ranks
        async with baton.AsyncClient(cluster.address) as client:
            answers = await run_all(client, WANTED)
        await cluster.until_idle()
        assert not cluster.router.driver.core.membership.transfers
    return answers


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[baton.Answer]:
    return asyncio.run(asyncio.wait_for(_run(checkpoint, {"mixed": 1}, {"mixed": 1}), 120))


@pytest.mark.slow
@pytest.mark.parametrize(("prefill", "decode"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_a_hundred_requests_give_the_same_tokens_between_unequal_workers(
    checkpoint: Path, expected: list[baton.Answer], prefill: int, decode: int
) -> None:
    """The model has 2 KV heads: 4 ranks keep copies, 2 have one each."""
    pools, ranks = {"prefill": 1, "decode": 1}, {"prefill": prefill, "decode": decode}
    answers = asyncio.run(asyncio.wait_for(_run(checkpoint, pools, ranks), 120))
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    assert max(answer.attempts for answer in answers) == 1, "no page arrived corrupt"
    handed_over = [answer.handoff for answer in answers if answer.handoff is not None]
    assert len(handed_over) > 80
    page_bytes = 2 * 2 * 16 * 2 * 16 * 4  # Layers, K and V, positions, heads, head size, float32
    assert all(handoff.bytes_sent == handoff.pages_sent * page_bytes for handoff in handed_over)
    assert any(handoff.pages_cached for handoff in handed_over)
