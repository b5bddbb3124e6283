"""Swapped out and in again with a real engine: the tokens are those of the undisturbed run, to the last one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import baton
from baton.decode_worker.role import DecodeRole
from baton.engine.batch import StepBudget
from baton.engine.executor import TorchExecutor
from baton.engine.host_pages import HostPages
from baton.engine.kv_pages import PagePool
from baton.harness.process_cluster import ProcessCluster, plans
from baton.protocol.gateway_messages import StepOutput
from baton.protocol.messages import Prefill, Work
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.worker.core.role import Command, Occupancy, SendToGateway, SwapIn, SwapOut
from baton.worker.core.state import WorkerState
from tests.checkpoints import build_checkpoint
from tests.engine.running import generate, load_executor
from tests.page_pools import evict_all

PAGE_SIZE, NUM_PAGES = 16, 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("checkpoint"), "llama3", seed=5, max_position_embeddings=256)


@pytest.fixture(scope="module")
def cases(folder: Path) -> Iterator[list[tuple[list[int], SamplingParams, list[int]]]]:
    """Prompt, parameters and the undisturbed answer, of which one fits into the pages at a time, hardly two."""
    rng = random.Random(8)
    shared = [rng.randrange(3, 320) for _ in range(2 * PAGE_SIZE)]
    prompts = [shared * (index % 2) + [rng.randrange(3, 320) for _ in range(rng.randint(30, 60))] for index in range(6)]
    sampling = [
        SamplingParams(max_tokens=70, ignore_eos=True, temperature=0.9 * (index % 2), seed=index) for index in range(6)
    ]
    answers = generate(load_executor(folder, 200), prompts, sampling)
    yield list(zip(prompts, sampling, answers, strict=True))


class _Worker:
    """A mixed worker's role over an engine of few pages."""

    def __init__(self, executor: TorchExecutor, host_pages: int) -> None:
        pool = PagePool(executor.layout.num_pages, PAGE_SIZE)
        eos = executor.config.eos_token_ids
        state = WorkerState("w:1", "m", eos, 256, StepBudget(64, 8), pool, host_pages=host_pages)
        self.role, self.pool, self.executor = DecodeRole(state, RoleName.MIXED), pool, executor
        self.host = HostPages(executor.pages, host_pages)
        state.streams.attach("g", ())
        self.tokens: dict[str, list[int]] = {}

    def perform(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case SendToGateway(_, StepOutput(outputs)):
                    for one in outputs:
                        self.tokens.setdefault(one.request_id, []).append(one.token_id)
                case SwapOut(pages, slots):
                    self.host.copy_out(pages, slots)
                    self.executor.pages[list(pages)] = 50.0  # a sequence that reads them computes nonsense
                case SwapIn(slots, pages):
                    self.host.copy_in(slots, pages)

    def turn(self) -> bool:
        copies, plan = self.role.plan(0.0)
        self.perform(copies)
        if plan is not None:
            self.perform(self.role.absorb(plan, self.executor.execute(plan), 0.0))
        return plan is not None

    def occupancy(self) -> Occupancy:
        return self.role.occupancy()


@pytest.mark.parametrize("host_pages", [40, 6, 0])
def test_the_tokens_do_not_tell_of_any_swap(
    folder: Path, cases: list[tuple[list[int], SamplingParams, list[int]]], host_pages: int
) -> None:
    worker = _Worker(load_executor(folder, NUM_PAGES), host_pages)
    unshared = [case for index, case in enumerate(cases) if index % 2 == 0]  # whose pages no other sequence may read
    for index, (prompt, sampling, _) in enumerate(unshared):
        worker.role.on_message(
            Prefill(str(index), Work(Request(str(index), tuple(prompt), sampling)), "g", False, 0), 0.0
        )
    while worker.turn():
        evict_all(worker.pool)  # what is not copied back would have to be computed
    assert [worker.tokens[str(index)] for index in range(len(unshared))] == [answer for _, _, answer in unshared]
    held = worker.occupancy()
    assert (held.swap_outs > 0) == (host_pages > 0)
    assert (held.recomputes > 0) == (host_pages < 40)
    assert worker.pool.num_in_use == held.swapped == 0


def test_slots_and_pages_are_copied_pairwise_whatever_their_order() -> None:
    pages = torch.arange(5 * 4, dtype=torch.float32).reshape(5, 1, 2, 2, 1, 1)
    before = pages.clone()
    host = HostPages(pages, 3)
    host.copy_out((4, 1, 3), (0, 2, 1))
    pages.zero_()
    host.copy_in((2, 1, 0), (1, 3, 0))
    assert torch.equal(pages[[1, 3, 0]], before[[1, 3, 4]])
    assert not pages[[2, 4]].any()


@pytest.mark.parametrize(("host_pages", "ranks"), [(60, 1), (0, 1), (60, 2)])
def test_worker_processes_short_of_pages_answer_as_if_they_were_not(
    folder: Path, cases: list[tuple[list[int], SamplingParams, list[int]]], host_pages: int, ranks: int
) -> None:
    """A prefill worker hands over to a decode worker that has pages for hardly two of six sequences."""

    async def play() -> None:
        router_config, worker_config = plans(
            folder, 256, NUM_PAGES, policy="least_loaded", chunk_tokens=64, max_batch=8
        )
        worker_config = replace(worker_config, engine=worker_config.engine.changed(host_pages=host_pages))
        pools = {"prefill": 1, "decode": 1}
        async with ProcessCluster(router_config, worker_config, pools, {"decode": ranks}) as cluster:
            core = cluster.router.driver.core
            async with baton.AsyncClient(cluster.address) as client:
                asked = [client.generate(prompt, sampling, timeout_s=60) for prompt, sampling, _ in cases]
                answers = await asyncio.wait_for(asyncio.gather(*asked), 100)
            assert [one.token_ids for one in answers] == [answer for _, _, answer in cases]
            views = core.state.workers
            await cluster.until(lambda: not core.live and not any(one.load.pages_in_use for one in views.values()))
            load = views["decode-0"].load
            assert (load.swap_outs > 0, load.recomputes > 0) == (host_pages > 0, host_pages == 0)
            assert load.swapped == 0

    asyncio.run(play())
