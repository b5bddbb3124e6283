"""Nine of ten clients leave within a second, and again, and again: pages come back, and throughput stays.

A router and three workers of the built-in model, each a process, under a fixed number of streams: whoever leaves is
replaced by a client with a new request, so that the load before and after is the same. Each answer that is not
cancelled is compared with the one an idle cluster gave.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import baton
from baton.builtin_model import CHECKPOINT
from baton.client.client import AsyncTokenStream
from baton.client.errors import BatonError, Cancelled
from baton.harness.process_cluster import ProcessCluster, plans
from baton.harness.report import Goal, Report, arguments, progress
from baton.router.core.page_audit import PageAudit, Verdict, judge

GOALS = {
    "throughput_share_after_2s": Goal(0.9),
    "pages_leaked": Goal(0, at_most=True),
    "answers_wrong": Goal(0, at_most=True),
}
POOLS = {"prefill": 1, "decode": 2}
STORMS, SHARE, LEAVE_WITHIN_S = 3, 0.9, 1.0
BEFORE_S, AFTER_S = 4.0, 2.0  # throughput is measured for so long before a storm, and from 2 s after it on
LOOK_EVERY_S = 0.25


@dataclass(eq=False)
class Crowd:
    """`width` clients, each of which has a stream at any time until the block ends."""

    cluster: ProcessCluster
    client: baton.AsyncClient
    width: int = 200
    max_tokens: int = 160
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    expected: list[list[int]] = field(default_factory=list)
    tokens: int = 0  # that came to anybody
    answered: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    _open: dict[int, AsyncTokenStream] = field(default_factory=dict)  # by place
    _cancelled: set[AsyncTokenStream] = field(default_factory=set)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: bool = False

    def _stream(self, index: int) -> AsyncTokenStream:
        options: dict[str, Any] = {"max_tokens": self.max_tokens, "ignore_eos": True, "temperature": 0.8}
        return self.client.stream([5 + index] * (20 + 9 * index), seed=index, **options)

    async def __aenter__(self) -> Crowd:
        for index in range(6):
            self.expected.append((await self._stream(index).answer()).token_ids)
        self._tasks = [asyncio.create_task(self._serve(place)) for place in range(self.width)]
        return self

    async def __aexit__(self, *error: object) -> None:
        """Let every stream that is left come to its end."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _serve(self, place: int) -> None:
        while not self._stopping:
            index = self.rng.randrange(len(self.expected))
            stream = self._open[place] = self._stream(index)
            try:
                async for _ in stream:
                    self.tokens += 1
                if (await stream.answer()).token_ids != self.expected[index]:
                    self.wrong.append(f"place {place}: not the answer of prompt {index}")
                self.answered += 1
            except Cancelled:
                if stream not in self._cancelled:
                    self.wrong.append(f"place {place}: cancelled, though nobody left")
                self._cancelled.discard(stream)
                self.left += 1
            except BatonError as error:
                self.wrong.append(f"place {place}: {error!r}")

    async def storm(self, share: float = SHARE, within_s: float = LEAVE_WITHIN_S) -> None:
        """So many of the clients leave, each at some moment within that time."""

        async def leave(place: int) -> None:
            await asyncio.sleep(self.rng.uniform(0.0, within_s))
            self._cancelled.add(self._open[place])
            self._open[place].cancel()

        await asyncio.gather(*(leave(place) for place in self.rng.sample(range(self.width), int(share * self.width))))

    async def tokens_per_s(self, seconds: float) -> float:
        tokens, begun_s = self.tokens, time.monotonic()
        await asyncio.sleep(seconds)
        return (self.tokens - tokens) / (time.monotonic() - begun_s)


async def watch_pages(cluster: ProcessCluster, seconds: float) -> Verdict:
    """What is held all the while and belongs to nobody."""
    core = cluster.router.driver.core
    audit = PageAudit(core.state, core.operations.records, core.membership.quarantine, core.claims.unclaimed)
    looks = [audit.look()]
    for _ in range(round(seconds / LOOK_EVERY_S)):
        await asyncio.sleep(LOOK_EVERY_S)
        looks.append(audit.look())
    return judge(looks)


def storm_cluster(folder: Any, context_tokens: int = 256) -> ProcessCluster:
    """Room for the whole crowd at once in neither pages nor batch."""
    router_plan, worker_plan = plans(folder, context_tokens, 600, policy="least_loaded", chunk_tokens=128, max_batch=32)
    return ProcessCluster(router_plan, worker_plan, POOLS)


async def measure(width: int, storms: int, pace: float, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """`pace` is 1; less shortens every wait for a run that only shows that everything works."""
    shares, before, after = [], [], []
    async with storm_cluster(CHECKPOINT) as cluster, baton.AsyncClient(f"127.0.0.1:{cluster.router.port}") as client:
        async with Crowd(cluster, client, width, rng=random.Random(seed)) as crowd:
            await crowd.tokens_per_s(pace * BEFORE_S)
            for _ in range(storms):
                before.append(await crowd.tokens_per_s(pace * BEFORE_S))
                await crowd.storm(within_s=pace * LEAVE_WITHIN_S)
                await asyncio.sleep(pace * 2.0)
                after.append(await crowd.tokens_per_s(pace * AFTER_S))
                shares.append(after[-1] / before[-1])
            busy = await watch_pages(cluster, pace * 2.0)
        await asyncio.sleep(pace * 1.0)
        idle = await watch_pages(cluster, pace * 2.0)
        held = sum(one.latest.pages_owned for one in idle.workers)
    figures = {
        "throughput_share_after_2s": median(shares),
        "throughput_share_worst": min(shares),
        "tokens_per_s_before": median(before),
        "tokens_per_s_after": median(after),
        "clients_left": float(crowd.left),
        "answers": float(crowd.answered),
        "answers_wrong": float(len(crowd.wrong)),
        "pages_leaked": float(sum(one.pages_leaked for one in busy.workers) + held + idle.live_requests),
    }
    return figures, {"shares": shares, "wrong": crowd.wrong[:10]}


def main() -> None:
    parser = arguments(__doc__, "python -m tests.reliability.abort_storm")
    parser.add_argument("--streams", type=int, default=200)
    args = parser.parse_args()
    report = Report("abort_storm", GOALS)
    with progress(1) as step:
        step("storms")
        streams, storms, pace = args.pick((args.streams, STORMS, 1.0), (args.streams, 1, 1.0), (40, 1, 0.2))
        report.figures, report.details = asyncio.run(measure(streams, storms, pace, args.seed))
    report.setting = {"streams": streams, "storms": storms, "seed": args.seed}
    report.publish(args)


if __name__ == "__main__":
    main()
