"""sglang 28651: nine of ten clients leave at once, three times; other answers stay right, and nothing stays held."""

from __future__ import annotations

import pytest

import baton
from baton.harness.process_cluster import ProcessCluster
from tests.live.processes import Play
from tests.reliability.abort_storm import SHARE, STORMS, crowd
from tests.reliability.leaks import check_pages


async def _storms(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
    load = crowd(client, seed=0, max_tokens=30)
    await load.learn()
    async with load.clients(200):
        for _ in range(STORMS):
            answers = len(load.done)
            await cluster.until(lambda before=answers: len(load.done) > before + 10)  # type: ignore[misc]
            await load.leave(SHARE, within_s=0.3)
        check = await check_pages(cluster.admin_address, 1.0)
        assert check.clean, check
    assert not load.wrong, load.wrong[:3]
    assert STORMS * 150 < len(load.left) <= STORMS * 180  # an answer may be complete just when its client leaves


@pytest.mark.slow
def test_an_abort_storm_costs_other_clients_nothing_and_leaks_no_page(play: Play) -> None:
    play(_storms)
