"""A killed worker costs its requests a pause; the tokens that follow are unchanged."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import baton
from baton.harness.process_cluster import ProcessCluster, plans

OPTIONS: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "temperature": 0.8}


async def _kill_two(folder: Path) -> None:
    router_config, worker_config = plans(folder, 256, 256, policy="least_loaded", chunk_tokens=64, lost_after_s=3.0)
    async with ProcessCluster(router_config, worker_config, {"prefill": 2, "decode": 2}) as cluster:
        core = cluster.router.driver.core
        async with baton.AsyncClient(cluster.address) as client:
            prompts = [[7 + index] * 40 for index in range(4)]
            expected = [
                (await client.generate(prompt, seed=index, **OPTIONS)).token_ids for index, prompt in enumerate(prompts)
            ]
            for victim in ("decode-0", "prefill-1"):
                streams = [client.stream(prompt, seed=index, **OPTIONS) for index, prompt in enumerate(prompts)]
                for stream in streams if victim == "decode-0" else streams[:1]:
                    await anext(stream)
                os.kill(cluster.processes[victim].pid or 0, signal.SIGKILL)
                answers = await asyncio.gather(*(stream.answer() for stream in streams))
                assert [answer.token_ids for answer in answers] == expected
                for answer in answers:
                    assert [token.index for token in answer.tokens] == list(range(len(answer.tokens)))
                if victim == "decode-0":
                    assert max(answer.attempts for answer in answers) == 2
        # An idle worker is missed only when its reports stop.
        await cluster.until(lambda: len(core.state.workers) == 2)
        assert sorted(core.state.workers) == ["decode-1", "prefill-0"]
        assert core.live == 0


@pytest.mark.slow
def test_killed_workers_cost_a_pause_and_no_token(checkpoint: Path) -> None:
    asyncio.run(asyncio.wait_for(_kill_two(checkpoint), 90))
