"""Steady streams against a live cluster, each answer compared with an undisturbed one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import baton
from baton.harness.process_cluster import ProcessCluster
from baton.protocol.errors import BatonError

OPTIONS: dict[str, Any] = {"max_tokens": 160, "ignore_eos": True, "temperature": 0.8}


@dataclass(eq=False)
class SteadyStreams:
    """`width` streams at any time, over a few prompts; `wrong` tells of every answer that is not what it should be."""

    cluster: ProcessCluster
    client: baton.AsyncClient
    width: int = 6
    expected: list[list[int]] = field(default_factory=list)
    answered: int = 0
    migrations: int = 0
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
                self.migrations += answer.migrations
                if answer.token_ids != self.expected[index]:
                    self.wrong.append(f"{request_id}: {answer.token_ids}")
                if [token.index for token in answer.tokens] != list(range(len(answer.tokens))):
                    self.wrong.append(f"{request_id}: a gap or a repeat")
            except BatonError as error:
                self.wrong.append(f"{request_id}: {error!r}")
            finally:
                self.live.discard(request_id)
            self.answered += 1
