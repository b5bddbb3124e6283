"""Steady load for as long as you like: does the memory of any process grow, is a page lost, is an answer wrong?

A Ray of its own with router, 1 prefill and 2 decode workers of the built-in model. First it is measured how many
requests per second the cluster answers at most, then `--load` of them come at random moments. Half of the prompts are
new, half are asked again and their answers compared. Memory is sampled all the while; the first fifth does not count.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import baton
from baton.builtin_model import CHECKPOINT
from baton.client.errors import BatonError
from baton.config.schema import parse_config
from baton.deploy.cluster import resolve_here
from baton.deploy.launcher import Started, connected, router_pid, start_cluster
from baton.deploy.local_ray import start_local_ray
from baton.harness.report import Goal, Report, arguments, progress
from tests.reliability.memory_slope import Memory

GOALS = {
    name: Goal(0, at_most=True) for name in ("pages_leaked", "requests_failed", "answers_wrong", "requests_left_out")
}
POOLS = {"prefill": 1, "decode": 2}
OPTIONS: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True, "temperature": 0.8}
PROMPTS = [[5 + index] * (40 + 40 * index) for index in range(6)]
WIDTH, PEAK_S, MAX_OPEN = 24, 15.0, 200
SAMPLE_S = 1.0


@dataclass(eq=False)
class Soak:
    """One run against a started cluster."""

    started: Started
    client: baton.AsyncClient
    rng: random.Random
    expected: list[list[int]] = field(default_factory=list)
    done: int = 0
    wrong: int = 0
    failed: list[str] = field(default_factory=list)
    left_out: int = 0  # requests that were not sent, because too many were open
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    async def _ask(self) -> None:
        index = self.rng.randrange(2 * len(PROMPTS))
        known = index < len(PROMPTS)
        prompt = PROMPTS[index] if known else [self.rng.randrange(3, 250) for _ in range(self.rng.randint(20, 300))]
        try:
            answer = await self.client.generate(prompt, seed=index, **OPTIONS)
            self.wrong += known and answer.token_ids != self.expected[index]
            self.done += 1
        except BatonError as error:
            self.failed.append(f"{type(error).__name__}: {error.message}")

    async def peak(self, seconds: float) -> float:
        """Requests per second when there are always some more."""
        for index, prompt in enumerate(PROMPTS):
            self.expected.append((await self.client.generate(prompt, seed=index, **OPTIONS)).token_ids)
        end_s, done = time.monotonic() + seconds, self.done

        async def ask_on() -> None:
            while time.monotonic() < end_s:
                await self._ask()

        await asyncio.gather(*(ask_on() for _ in range(WIDTH)))
        return (self.done - done) / seconds

    async def run(self, per_s: float, seconds: float, memory: Memory) -> None:
        """Arrivals at random moments, while memory is sampled."""
        sampler = asyncio.create_task(self._sample(memory))
        next_s = time.monotonic()
        end_s = next_s + seconds
        while (next_s := next_s + self.rng.expovariate(per_s)) < end_s:
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            if len(self._open) >= MAX_OPEN:
                self.left_out += 1
                continue
            task = asyncio.create_task(self._ask())
            self._open.add(task)
            task.add_done_callback(self._open.discard)
        sampler.cancel()
        await asyncio.gather(sampler, return_exceptions=True)
        await asyncio.gather(*self._open)

    async def _sample(self, memory: Memory) -> None:
        while True:
            memory.sample()
            await asyncio.sleep(SAMPLE_S)

    def pages_leaked(self) -> int:
        """Pages that somebody holds though no request is live."""
        with baton.Admin(self.started.admin_address) as admin:
            check = admin.check_pages(2.0)
        return sum(one.pages_held for one in check.workers) + len(check.lost_handoffs) + check.live_requests

    def memory(self) -> Memory:
        with baton.Admin(self.started.admin_address) as admin:
            workers = [worker for pool in admin.cluster().pools for worker in pool.workers]
        return Memory({"router": router_pid(), **{worker.name: worker.pid for worker in workers}})


async def soak(
    started: Started, minutes: float, peak_s: float, load: float, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    async with baton.AsyncClient(started.address) as client:
        run = Soak(started, client, random.Random(seed))
        memory = await asyncio.to_thread(run.memory)
        peak = await run.peak(peak_s)
        await run.run(load * peak, 60 * minutes, memory)
        leaked = await asyncio.to_thread(run.pages_leaked)
    slopes = memory.slopes()
    samples = memory.samples
    figures = {
        "minutes": minutes,
        "peak_requests_per_s": peak,
        "requests_done": float(run.done),
        "requests_failed": float(len(run.failed)),
        "requests_left_out": float(run.left_out),
        "answers_wrong": float(run.wrong),
        "router_mib": samples["router"][-1][1],
        "router_mib_per_hour": slopes["router"],
        "worker_mib_per_hour_max": max(slope for name, slope in slopes.items() if name != "router"),
        "pages_leaked": float(leaked),
    }
    return figures, {"slopes": slopes, "samples": samples, "failed": run.failed[:10]}


def measure(minutes: float, peak_s: float, load: float, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """A whole run with a Ray of its own, which is gone afterwards."""
    overrides: dict[str, dict[str, Any]] = {
        "pools": dict(POOLS),
        "engine": {"num_pages": 400, "threads": 1},
        "router": {"port": 0, "admin_port": 0, "policy": "least_loaded"},
        "model": {"dtype": "float32", "path": str(CHECKPOINT)},
    }
    ray = start_local_ray()
    try:
        with connected(ray):
            started = start_cluster(resolve_here(parse_config("", overrides)), lambda process, stage: None)
            return asyncio.run(soak(started, minutes, peak_s, load, seed))
    finally:
        ray.stop()


def main() -> None:
    parser = arguments(__doc__, "python -m tests.reliability.soak --minutes 6 --load 0.8", full_s=600.0)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--load", type=float, default=0.8, help="share of the most requests per second")
    args = parser.parse_args()
    report = Report("soak", GOALS)
    with progress(1) as step:
        step("steady load")
        minutes, peak_s = args.pick((args.minutes, PEAK_S), (0.3, PEAK_S), (0.05, 2.0))
        report.figures, report.details = measure(minutes, peak_s, args.load, args.seed)
    report.setting = {"load": args.load, "seed": args.seed}
    report.publish(args)


if __name__ == "__main__":
    main()
