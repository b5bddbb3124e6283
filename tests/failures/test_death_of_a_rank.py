"""Workers of 2 ranks under operators' commands, without their router, and with a rank killed or stopped in every phase
of a request: no token is lost, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

import baton
from baton.builtin_model import CHECKPOINT
from baton.harness.process_cluster import ProcessCluster, operate, plans
from baton.router.core.operation import Drain, Migrate, OperationSpec, OperationState, Rebalance, Undrain
from baton.worker.ranks import lifeline
from baton.worker.ranks.commands import Command
from baton.worker.ranks.follower import Follower
from tests.reliability.leaks import leaked_at_rest

WORKERS = ("prefill-0", "decode-0", "decode-1")
OPTIONS: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "temperature": 0.8}
PROMPTS = [[5 + index] * (150 + 20 * index) for index in range(6)]
SILENT_S, LOST_AFTER_S = 1.0, 3.0


def _prepare(name: str, folder: Path) -> None:
    """In a worker's process, whose followers are forked from it: a follower obeys the test's trigger first."""
    tempfile.tempdir = str(folder)
    lifeline.SILENT_S = SILENT_S
    obey, role = Follower._obey, name.split("-")[0]

    def obey_trigger(self: Follower, command: Command) -> None:
        for trigger in folder.glob(f"{role}.{type(command).__name__}.*"):
            with contextlib.suppress(FileNotFoundError):  # Another worker was first
                trigger.rename(folder / f"fired.{name}")
                os.kill(os.getpid(), int(trigger.suffix[1:]))
        obey(self, command)

    Follower._obey = obey_trigger  # type: ignore[method-assign]


@dataclass(eq=False)
class Ground:
    """A cluster of 1 + 2 workers of 2 ranks each, and what it answers when nothing happens to it."""

    cluster: ProcessCluster
    client: baton.AsyncClient
    folder: Path
    expected: list[list[int]]

    @property
    def views(self) -> Any:
        return self.cluster.router.driver.core.state.workers

    def ranks(self, name: str) -> list[int]:
        """The processes of a worker that serves."""
        return [rank.pid for rank in self.views[name].info.endpoint.ranks]

    def streams(self) -> list[baton.AsyncTokenStream]:
        return [self.client.stream(prompt, seed=index, **OPTIONS) for index, prompt in enumerate(PROMPTS)]

    async def check(self, streams: list[baton.AsyncTokenStream]) -> list[baton.Answer]:
        """Every answer is complete and right."""
        answers = await asyncio.gather(*(stream.answer() for stream in streams))
        assert [answer.token_ids for answer in answers] == self.expected
        for answer in answers:
            assert [token.index for token in answer.tokens] == list(range(len(answer.tokens)))
        return answers

    def trigger(self, role: str, command: str, sent: signal.Signals) -> None:
        """The first follower of this role to get such a command sends itself a signal."""
        (self.folder / f"{role}.{command}.{int(sent)}").touch()

    async def fired(self) -> str:
        """The worker whose follower has sent itself the signal."""
        await self.cluster.until(lambda: any(self.folder.glob("fired.*")), 60)
        (fired,) = self.folder.glob("fired.*")
        fired.unlink()
        return fired.suffix[1:]

    async def gone(self, pids: list[int]) -> None:
        """No process of these is left, not even a stopped one."""
        await self.cluster.until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 30)

    async def restart(self, name: str) -> None:
        await asyncio.to_thread(self.cluster.processes[name].join)
        self.cluster.spawn(name, name.split("-")[0])
        await self.cluster.until(lambda: name in self.views)

    async def restore(self) -> None:
        """All workers serve, also those that have died often, hold nothing, and have left no folder."""
        await self.cluster.until(lambda: sorted(self.views) == sorted(WORKERS), 60)
        await operate(self.cluster, Undrain(WORKERS))
        await self.cluster.until_idle()
        assert not self.cluster.router.driver.core.membership.transfers
        assert list(self.folder.iterdir()) == []


Scenario = Callable[[Ground], Awaitable[None]]
Play = Callable[[Scenario], None]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    folder = tmp_path_factory.mktemp("ranks")
    router_config, worker_config = plans(
        CHECKPOINT, 512, 400, policy="least_loaded", chunk_tokens=64, lost_after_s=LOST_AFTER_S
    )
    first = {name: partial(_prepare, name, folder) for name in WORKERS}
    ranks = {"prefill": 2, "decode": 2}
    cluster = ProcessCluster(router_config, worker_config, {"prefill": 1, "decode": 2}, ranks, first)

    async def start() -> Ground:
        await cluster.__aenter__()
        client = await baton.AsyncClient(cluster.address).__aenter__()
        asked = [client.generate(prompt, seed=index, **OPTIONS) for index, prompt in enumerate(PROMPTS)]
        return Ground(cluster, client, folder, [answer.token_ids for answer in await asyncio.gather(*asked)])

    async def run(scenario: Scenario) -> None:
        await asyncio.wait_for(scenario(ground), 100)
        await ground.restore()

    with asyncio.Runner() as runner:
        ground = runner.run(start())
        try:
            yield lambda scenario: runner.run(run(scenario))
            assert runner.run(leaked_at_rest(cluster.admin_address, len(WORKERS))) == 0
        finally:
            runner.run(ground.client.__aexit__(None, None, None))
            runner.run(cluster.__aexit__())


async def _migrate(ground: Ground) -> None:
    """Move a sequence to another decode worker."""
    records = ground.cluster.router.driver.core.operations.records

    def movable() -> list[str]:
        return sorted(request_id for request_id, record in records.items() if record.may_move(1e9))

    await ground.cluster.until(lambda: bool(movable()))
    await operate(ground.cluster, Migrate(random.Random(0).choice(movable())))


async def _done(ground: Ground, *specs: OperationSpec) -> None:
    for spec in specs:
        operation = await operate(ground.cluster, spec)
        assert operation.state is OperationState.DONE, (spec, operation.message)


@pytest.mark.slow
def test_roles_switch_workers_drain_and_sequences_move(play: Play) -> None:
    async def scenario(ground: Ground) -> None:
        before = {name: ground.ranks(name) for name in WORKERS}
        streams = ground.streams()
        await _migrate(ground)
        await _done(ground, Rebalance(2, 1), Rebalance(1, 2), Drain(("decode-1",)), Undrain(("decode-1",)))
        answers = await ground.check(streams) + await ground.check(ground.streams())
        assert max(answer.attempts for answer in answers) == 1
        assert sum(answer.migrations for answer in answers) > 0
        await _done(ground, Rebalance(1, 2))
        assert {name: ground.ranks(name) for name in WORKERS} == before

    play(scenario)


@pytest.mark.slow
def test_a_new_router_takes_over_the_sequences_of_workers_whose_ranks_all_open_new_transports(play: Play) -> None:
    async def scenario(ground: Ground) -> None:
        before = {name: ground.views[name].info for name in WORKERS}
        streams = ground.streams()
        for stream in streams:
            await anext(stream)
        await ground.cluster.restart_router()
        await ground.cluster.until(lambda: sorted(ground.views) == sorted(WORKERS), 60)
        await ground.check(streams)
        for name, info in before.items():
            after = ground.views[name].info
            assert after.incarnation != info.incarnation
            assert [rank.pid for rank in after.endpoint.ranks] == [rank.pid for rank in info.endpoint.ranks]
            assert all(
                new.metadata != old.metadata for new, old in zip(after.endpoint.ranks, info.endpoint.ranks, strict=True)
            )
        await ground.check(ground.streams())

    play(scenario)


PHASES = {
    "prefill, with other requests in its queue": ("prefill", "Step"),
    "handoff, before the source has written": ("prefill", "WritePages"),
    "handoff, before the target has compared the pages": ("decode", "HeadChecksums"),
    "decode": ("decode", "Step"),
    "migration": ("decode", "WritePages"),
}
phases = pytest.mark.parametrize("phase", PHASES)


@pytest.mark.slow
@phases
def test_a_killed_rank_ends_its_worker_and_costs_no_token(play: Play, phase: str) -> None:
    async def scenario(ground: Ground) -> None:
        ranks = {name: ground.ranks(name) for name in WORKERS}
        ground.trigger(*PHASES[phase], signal.SIGKILL)
        streams = ground.streams()
        if phase == "migration":
            await _migrate(ground)
        name = await ground.fired()
        await ground.gone(ranks[name])
        await ground.cluster.until(lambda: name not in ground.views, 2.0)  # Its leader has said goodbye
        await ground.restart(name)
        answers = await ground.check(streams)
        assert max(answer.attempts for answer in answers) > 1 or phase == "migration"

    play(scenario)


@pytest.mark.slow
@phases
def test_a_worker_with_a_stopped_rank_is_lost_costs_no_token_and_returns(play: Play, phase: str) -> None:
    async def scenario(ground: Ground) -> None:
        before = {name: ground.views[name].info for name in WORKERS}
        ground.trigger(*PHASES[phase], signal.SIGSTOP)
        streams = ground.streams()
        moved = asyncio.create_task(_migrate(ground)) if phase == "migration" else None
        name = await ground.fired()
        leader, follower = [rank.pid for rank in before[name].endpoint.ranks]
        await ground.cluster.until(lambda: name not in ground.views, SILENT_S + LOST_AFTER_S + 20)
        os.kill(follower, signal.SIGCONT)
        await ground.cluster.until(lambda: name in ground.views, 60)
        await ground.check(streams)
        if moved is not None:
            await moved
        assert ground.ranks(name) == [leader, follower]
        assert ground.views[name].info.incarnation != before[name].incarnation

    play(scenario)


@pytest.mark.slow
def test_a_worker_is_killed_and_started_again_although_a_rank_is_stopped(play: Play) -> None:
    async def scenario(ground: Ground) -> None:
        leader, follower = pids = ground.ranks("decode-1")
        os.kill(follower, signal.SIGSTOP)
        os.kill(leader, signal.SIGKILL)
        await ground.gone(pids)
        ground.cluster.router.driver.lose("decode-1")
        await ground.restart("decode-1")
        await ground.check(ground.streams())

    play(scenario)


@pytest.mark.slow
def test_a_leader_ends_at_once_when_an_idle_follower_does(play: Play) -> None:
    async def scenario(ground: Ground) -> None:
        pids = ground.ranks("decode-1")
        os.kill(pids[1], signal.SIGKILL)
        await ground.gone(pids)
        await ground.cluster.until(lambda: "decode-1" not in ground.views, 2.0)
        await ground.restart("decode-1")

    play(scenario)
