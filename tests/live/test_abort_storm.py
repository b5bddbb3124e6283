"""sglang 28651: nine of ten clients leave at once, three times; nobody else notices, and nothing stays held."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import baton
from benchmarks.abort_storm import STORMS, Crowd, storm_cluster, watch_pages


async def _storms(folder: Path) -> None:
    async with storm_cluster(folder) as cluster, baton.AsyncClient(f"127.0.0.1:{cluster.router.port}") as client:
        core = cluster.router.driver.core
        async with Crowd(cluster, client, width=200, max_tokens=40) as crowd:
            for _ in range(STORMS):
                answered = crowd.answered
                await cluster.until(lambda before=answered: crowd.answered > before + 10)  # type: ignore[misc]
                await crowd.storm(within_s=0.3)
            verdict = await watch_pages(cluster, 1.0)
            assert verdict.clean, verdict
        assert not crowd.wrong, crowd.wrong[:3]
        assert crowd.left == STORMS * 180
        await cluster.until(lambda: not core.live)
        await cluster.until(lambda: not any(view.load.pages_owned for view in core.state.workers.values()))
        assert len(core.membership.quarantine) == 0


@pytest.mark.slow
def test_an_abort_storm_leaves_the_others_alone_and_no_page_behind(checkpoint: Path) -> None:
    asyncio.run(asyncio.wait_for(_storms(checkpoint), 120))
