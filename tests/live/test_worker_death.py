"""A worker that is killed costs its requests a pause: the tokens that follow are those that would have come."""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import baton
from cluster.plan import RouterPlan, WorkerPlan

WORKERS = (("prefill-0", "prefill"), ("prefill-1", "prefill"), ("decode-0", "decode"), ("decode-1", "decode"))
OPTIONS: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "temperature": 0.8}


def _work(plan: WorkerPlan) -> None:
    from worker.assembly import assemble

    assemble(plan, str(os.getpid()), "localhost", lambda stage: None).run()


async def _kill_two(folder: Path) -> None:
    from router.assembly import start_router

    plan = RouterPlan(str(folder), "m", "float32", 256, "127.0.0.1", 0, "127.0.0.1", 100, 3.0, "least_loaded")
    router = await start_router(plan)
    processes = {}
    for name, role in WORKERS:
        plan = WorkerPlan(
            name, role, str(folder), router.worker_address, "float32", "cpu", 256, 256, 16, 64, 16, 16, threads=1
        )
        processes[name] = mp.get_context("spawn").Process(target=_work, args=(plan,), daemon=True)
        processes[name].start()
    try:
        while len(router.driver.core.state.workers) < len(WORKERS):
            await asyncio.sleep(0.05)
        async with baton.AsyncClient(f"127.0.0.1:{router.port}") as client:
            prompts = [[7 + index] * 40 for index in range(4)]
            expected = [
                (await client.generate(prompt, seed=index, **OPTIONS)).token_ids for index, prompt in enumerate(prompts)
            ]
            for victim in ("decode-0", "prefill-1"):
                streams = [client.stream(prompt, seed=index, **OPTIONS) for index, prompt in enumerate(prompts)]
                for stream in streams if victim == "decode-0" else streams[:1]:
                    await anext(stream)
                os.kill(processes[victim].pid or 0, signal.SIGKILL)
                answers = await asyncio.gather(*(stream.answer() for stream in streams))
                assert [answer.token_ids for answer in answers] == expected
                for answer in answers:
                    assert [token.index for token in answer.tokens] == list(range(len(answer.tokens)))
                if victim == "decode-0":
                    assert max(answer.attempts for answer in answers) == 2
        # A worker nobody waits for is missed only when its reports are.
        while len(router.driver.core.state.workers) > 2:
            await asyncio.sleep(0.05)
        assert sorted(router.driver.core.state.workers) == ["decode-1", "prefill-0"]
        assert router.driver.core.live == 0
    finally:
        for process in processes.values():
            process.kill()
            process.join()
        await router.stop(0.0)


@pytest.mark.slow
def test_killed_workers_cost_a_pause_and_no_token(checkpoint: Path) -> None:
    asyncio.run(asyncio.wait_for(_kill_two(checkpoint), 90))
