"""sglang 28651: nine of ten clients cancel at once, three times; the others are not affected and no page stays held."""

from __future__ import annotations

import pytest

import baton
from benchmarks.abort_storm import STORMS, Crowd, watch_pages
from benchmarks.process_cluster import ProcessCluster
from tests.live.processes import Play


async def _storms(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
    async with Crowd(cluster, client, width=200, max_tokens=30) as crowd:
        for _ in range(STORMS):
            answered = crowd.answered
            await cluster.until(lambda before=answered: crowd.answered > before + 10)  # type: ignore[misc]
            await crowd.storm(within_s=0.3)
        verdict = await watch_pages(cluster, 1.0)
        assert verdict.clean, verdict
    assert not crowd.wrong, crowd.wrong[:3]
    assert STORMS * 150 < crowd.left <= STORMS * 180  # an answer may be complete just when its client cancels


@pytest.mark.slow
def test_an_abort_storm_costs_other_clients_nothing_and_leaks_no_page(play: Play) -> None:
    play(_storms)
