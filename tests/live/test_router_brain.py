"""The default policy on live workers, over the real links: objectives, prefix index and learned output lengths."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from baton.client.admin import Admin
from baton.client.errors import Overloaded
from baton.config.process_config import RouterConfig
from baton.protocol.request import Objectives
from baton.router.policy.output_length import OutputLength
from tests.live.conftest import CHUNK_TOKENS, PAGE_SIZE, Live
from tests.plans import router_config
from tests.waiting import until

pytestmark = pytest.mark.ray


def test_an_objective_that_no_worker_can_meet_is_refused_at_once(brain: Live) -> None:
    with brain.client() as client, pytest.raises(Overloaded, match="TTFT objective"):
        client.generate([9] * 50, max_tokens=2, objectives=Objectives(ttft_s=1e-6))
    brain.wait_idle()


def test_easy_objectives_are_met(brain: Live) -> None:
    with brain.client() as client:
        answer = client.generate([8] * 50, max_tokens=4, objectives=Objectives(ttft_s=30.0, tpot_s=5.0))
    assert answer.output_tokens == 4


def _cached(admin: Admin) -> int:
    return sum(one.pages_cached for pool in admin.cluster().pools for one in pool.workers)


def test_the_router_tracks_the_cached_pages_of_a_worker(brain: Live) -> None:
    prompt = [3 + index % 250 for index in range(2 * CHUNK_TOKENS + 5)]
    full_pages = (len(prompt) - 1) // PAGE_SIZE
    with brain.client() as client, brain.admin() as admin:
        cached = _cached(admin)
        first = client.generate(prompt, max_tokens=2, ignore_eos=True)
        until(lambda: _cached(admin) >= cached + 2 * full_pages)  # At both of its workers
        brain.wait_idle()
        again = client.generate(prompt, max_tokens=2, ignore_eos=True)
        before, after = admin.explain(first.request_id), admin.explain(again.request_id)
    assert before.candidates[0].uncached_tokens == len(prompt)
    assert after.candidates[0].uncached_tokens == len(prompt) - full_pages * PAGE_SIZE
    assert again.cached_tokens == full_pages * PAGE_SIZE
    assert after.state == "finished"
    assert after.output_tokens == 2


def test_learned_output_lengths_survive_a_restart_of_the_router(checkpoint: Path, tmp_path: Path) -> None:
    from baton.router.build import load_learned, start_router

    path = tmp_path / "state" / "learned.json"
    plan = router_config(checkpoint, state_file=str(path))

    async def serve() -> None:
        router = await start_router(plan)
        learned = router.driver.core.output_length
        for _ in range(50):
            learned.observe(learned.predict((), "tenant", 100, 4096), 40)
        await router.stop(0.0)

    asyncio.run(serve())
    again = load_learned(path).predict((), "tenant", 100, 4096).distribution
    assert 35 <= again.median <= 45
    assert OutputLength().predict((), "tenant", 100, 4096).distribution.median > 100
    path.write_text('{"version": 1, "levels": 3}')
    assert load_learned(path).predict((), "tenant", 100, 4096).distribution.median > 100


def test_a_router_starts_with_the_planner_of_its_configuration(checkpoint: Path) -> None:
    from baton.router.build import start_router

    async def acts(plan: RouterConfig) -> bool:
        router = await start_router(plan)
        acting = router.driver.core.automation.auto
        await router.stop(0.0)
        return acting

    assert not asyncio.run(acts(router_config(checkpoint)))
    assert asyncio.run(acts(router_config(checkpoint, auto_rebalance=True)))
