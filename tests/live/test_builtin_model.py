"""Look-ups through a live cluster: an answer is correct only if every page arrived in its place."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from baton.builtin_model import CHECKPOINT
from baton.builtin_model.tasks import look_up
from baton.deploy.launcher import stop_cluster
from baton.deploy.local_ray import LocalRay
from tests.live.conftest import Live, start_live

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def builtin(ray_head: LocalRay) -> Iterator[Live]:
    yield start_live(CHECKPOINT, "builtin-", {"prefill": 1, "decode": 1}, num_pages=1200, chunk_tokens=256)
    stop_cluster("builtin-")


def test_look_ups_over_many_pages_are_correct_after_the_handoff(builtin: Live) -> None:
    rng = random.Random(77)
    tasks = [look_up(rng, rng.randint(20, 230)) for _ in range(24)]

    async def ask() -> list[str]:
        async with builtin.async_client() as client:
            answers = await asyncio.gather(*(client.generate(task.prompt, max_tokens=12) for task in tasks))
        assert all(answer.handoff is not None for answer in answers)
        return [answer.text for answer in answers]

    answered = asyncio.run(ask())
    right = sum(text == task.answer for text, task in zip(answered, tasks, strict=True))
    # The model computes each digit; docs/builtin_model.md has its measured accuracy in look-ups.
    assert right >= len(tasks) - 3
    builtin.wait_idle()
