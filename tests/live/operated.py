"""Steady streams against a live cluster while operators change its pools."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import baton
from benchmarks.process_cluster import ProcessCluster
from cluster.errors import BatonError
from router.operation import Ask, Drain, Migrate, Operation, OperationState, Rebalance, Undrain

OPTIONS: dict[str, Any] = {"max_tokens": 160, "ignore_eos": True, "temperature": 0.8}


@dataclass(eq=False)
class SteadyStreams:
    """`width` streams at any time, over a few prompts; `wrong` tells of every answer that is not what it should be."""

    cluster: ProcessCluster
    client: baton.AsyncClient
    width: int = 6
    expected: list[list[int]] = field(default_factory=list)
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    live: set[str] = field(default_factory=set)
    _count: int = 0
    _stopping: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @staticmethod
    def prompt(index: int) -> list[int]:
        return [5 + index] * (30 + 7 * index)

    async def __aenter__(self) -> SteadyStreams:
        for index in range(5):
            answer = await self.client.generate(self.prompt(index), seed=index, **OPTIONS)
            self.expected.append(answer.token_ids)
        self._tasks = [asyncio.create_task(self._serve()) for _ in range(self.width)]
        return self

    async def __aexit__(self, *error: object) -> None:
        """Let every stream come to its end, and look that nothing is held any more."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        core = self.cluster.router.driver.core
        await self.cluster.until(lambda: not core.live)
        await self.cluster.until(lambda: all(not view.load.pages_owned for view in core.state.workers.values()))

    async def _serve(self) -> None:
        while not self._stopping:
            self._count += 1
            index, request_id = self._count % len(self.expected), f"steady-{self._count}"
            self.live.add(request_id)
            try:
                answer = await self.client.generate(self.prompt(index), seed=index, request_id=request_id, **OPTIONS)
                if answer.token_ids != self.expected[index]:
                    self.wrong.append(f"{request_id}: {answer.token_ids}")
                if [token.index for token in answer.tokens] != list(range(len(answer.tokens))):
                    self.wrong.append(f"{request_id}: a gap or a repeat")
            except BatonError as error:
                self.wrong.append(f"{request_id}: {error!r}")
            finally:
                self.live.discard(request_id)
            self.answered += 1


async def operate(cluster: ProcessCluster, ask: Ask) -> Operation:
    """An operation to its end."""
    driver = cluster.router.driver
    operation = driver.start_operation("", ask, False)
    async for moved in driver.watch(operation.operation_id):
        operation = moved
    return operation


async def migrate_many(cluster: ProcessCluster, streams: SteadyStreams, count: int, rng: random.Random) -> None:
    """Move running sequences until `count` have arrived at another worker."""
    moved = 0
    records = cluster.router.driver.core.operations.records
    while moved < count:
        await cluster.until(lambda: any(record.may_move(1e9) for record in records.values()))
        movable = sorted(request_id for request_id, record in records.items() if record.may_move(1e9))
        operation = await operate(cluster, Migrate(rng.choice(movable)))
        moved += operation.state is OperationState.DONE


def random_ask(rng: random.Random, names: list[str], live: list[str]) -> Ask:
    """Any command, sensible or not."""
    match rng.randrange(6):
        case 0:
            return Drain(tuple(rng.sample(names, rng.randint(1, 2))))
        case 1:
            return Undrain(tuple(rng.sample(names, 2)))
        case 2 | 3:
            return Migrate(rng.choice([*live, "nobody"]), rng.choice([None, *names, "nobody"]))
        case _:
            prefill = rng.randint(0, len(names))
            return Rebalance(prefill, len(names) - prefill + (rng.random() < 0.1))


async def command_at_random(cluster: ProcessCluster, streams: SteadyStreams, seconds: float, seed: int) -> int:
    """Commands for so long, some of them cancelled; then the pools are 2 + 2 again. Returns how many were done."""
    rng = random.Random(seed)
    driver, done = cluster.router.driver, 0
    names = [name for name, _ in cluster.names]
    end_s = driver.clock() + seconds
    while driver.clock() < end_s:
        try:
            operation = driver.start_operation("", random_ask(rng, names, sorted(streams.live)), False)
            done += 1
            if rng.random() < 0.2:
                driver.cancel_operation(operation.operation_id)
        except BatonError as error:
            assert error.message.endswith((".", "`.")), error.message
        await asyncio.sleep(rng.expovariate(20))
    core = driver.core
    await cluster.until(lambda: not core.operations.running)
    await operate(cluster, Undrain(tuple(names)))
    final = await operate(cluster, Rebalance(2, 2))
    assert final.state is OperationState.DONE, final.message
    return done
