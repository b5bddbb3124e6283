"""Five times the load that saturates: who is not served is told so at once, who is served is served as promised.

A Ray of its own with router, 1 prefill and 2 decode workers of the built-in model. First it is measured how many
requests per second the cluster answers at most; then requests with objectives come at random moments at that rate, and
at five times that rate, for as long each. What is refused does not come again. Afterwards ordinary requests are sent
one by one until one is answered as fast as on the idle cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import baton
from baton.builtin_model import CHECKPOINT
from baton.client.errors import BatonError, Overloaded
from baton.config.schema import parse_config
from baton.deploy.cluster import resolve_here
from baton.deploy.launcher import Started, connected, router_pid, start_cluster
from baton.deploy.local_ray import start_local_ray
from baton.harness.report import Goal, Report, arguments, progress
from baton.protocol.request import Objectives
from tests.reliability.memory_slope import Memory

GOALS = {
    "goodput_ratio_overload_to_saturation": Goal(0.8),
    "requests_failed": Goal(0, at_most=True),
    "refused_without_hint": Goal(0, at_most=True),
    "pages_leaked": Goal(0, at_most=True),
}
POOLS = {"prefill": 1, "decode": 2}
# Long prompts and short answers: the workers' time, not that of this client, is what there is too little of.
PROMPT_TOKENS = (200, 800)
OPTIONS: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True, "temperature": 0.8}
TTFT_S, TPOT_S = 2.0, 0.2
OBJECTIVES = Objectives(ttft_s=TTFT_S, tpot_s=TPOT_S)
TIMES = 5
WIDTH, PEAK_S = 48, 10.0
SAMPLE_S = 0.5
ORDINARY = 1.5  # times the median of the idle cluster
RECOVERY_S = 60.0


@dataclass(eq=False)
class Tally:
    """What became of the requests of one load."""

    sent: int = 0
    done: int = 0
    good: int = 0  # within their objectives
    late: int = 0  # answered, but not within the TTFT objective
    slow: int = 0  # or within that of the TPOT
    refused: int = 0
    refused_without_hint: int = 0
    refusals_s: list[float] = field(default_factory=list)  # how long a refusal took
    failed: Counter[str] = field(default_factory=Counter)
    queued_max: int = 0
    live_max: int = 0


@dataclass(eq=False)
class Overload:
    """One run against a started cluster."""

    started: Started
    client: baton.AsyncClient
    rng: random.Random
    memory: Memory

    async def ask(self, tally: Tally, objectives: Objectives | None = OBJECTIVES) -> None:
        prompt = [self.rng.randrange(3, 250) for _ in range(self.rng.randint(*PROMPT_TOKENS))]
        begun_s = time.monotonic()
        tally.sent += 1
        try:
            answer = await self.client.generate(prompt, objectives=objectives, **OPTIONS)
        except Overloaded as error:
            tally.refused += 1
            tally.refused_without_hint += error.retry_after_s is None
            tally.refusals_s.append(time.monotonic() - begun_s)
        except BatonError as error:
            tally.failed[f"{type(error).__name__}: {error.message}"] += 1
        else:
            tally.done += 1
            late, slow = answer.ttft_s > TTFT_S, (answer.tpot_s or 0.0) > TPOT_S
            tally.late += late
            tally.slow += slow
            tally.good += not late and not slow

    async def saturate(self, seconds: float) -> float:
        """Requests per second when there are always some more."""
        tally, end_s = Tally(), time.monotonic() + seconds

        async def ask_on() -> None:
            while time.monotonic() < end_s:
                await self.ask(tally, None)

        begun_s = time.monotonic()
        await asyncio.gather(*(ask_on() for _ in range(WIDTH)))
        return tally.done / (time.monotonic() - begun_s)

    async def load(self, per_s: float, seconds: float, ordinary_s: float) -> tuple[Tally, float]:
        """Arrivals at random moments, whatever became of those before; and the recovery from them (see below)."""
        tally, tasks = Tally(), set()
        sampler = asyncio.create_task(self._sample(tally))
        next_s = time.monotonic()
        end_s = next_s + seconds
        while (next_s := next_s + self.rng.expovariate(per_s)) < end_s:
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            tasks.add(asyncio.create_task(self.ask(tally)))
        recovery_s = await self.recovery(ordinary_s)
        await asyncio.gather(*tasks)
        sampler.cancel()
        await asyncio.gather(sampler, return_exceptions=True)
        return tally, recovery_s

    async def _sample(self, tally: Tally) -> None:
        while True:
            await asyncio.to_thread(self._look, tally)
            await asyncio.sleep(SAMPLE_S)

    def _look(self, tally: Tally) -> None:
        self.memory.sample()
        with baton.Admin(self.started.admin_address) as admin:
            cluster = admin.cluster()
        tally.queued_max = max(tally.queued_max, cluster.queued_requests)
        tally.live_max = max(tally.live_max, cluster.live_requests)

    async def latency(self) -> float:
        """Seconds of one ordinary request."""
        begun_s = time.monotonic()
        await self.client.generate([7, 9] * 250, **OPTIONS)
        return time.monotonic() - begun_s

    async def recovery(self, ordinary_s: float) -> float:
        """Seconds from the last arrival until a request that comes then is answered as on an idle cluster."""
        begun_s = time.monotonic()
        while (asked_s := time.monotonic() - begun_s) < RECOVERY_S:
            with contextlib.suppress(Overloaded):
                if await self.latency() <= ORDINARY * ordinary_s:
                    return asked_s
        return RECOVERY_S

    def pages_leaked(self) -> int:
        with baton.Admin(self.started.admin_address) as admin:
            check = admin.check_pages(2.0)
        return sum(one.pages_held for one in check.workers) + len(check.lost_handoffs) + check.live_requests


def memory_of(started: Started) -> Memory:
    with baton.Admin(started.admin_address) as admin:
        workers = [worker for pool in admin.cluster().pools for worker in pool.workers]
    return Memory({"router": router_pid(), **{worker.name: worker.pid for worker in workers}})


async def run(started: Started, seconds: float, peak_s: float, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    async with baton.AsyncClient(started.address) as client:
        overload = Overload(started, client, random.Random(seed), await asyncio.to_thread(memory_of, started))
        await overload.saturate(peak_s / 2)  # step times are learned, caches fill
        peak = await overload.saturate(peak_s)
        ordinary_s = median([await overload.latency() for _ in range(5)])
        once, _ = await overload.load(peak, seconds, ordinary_s)
        overload.memory.samples.clear()
        many, recovery_s = await overload.load(TIMES * peak, seconds, ordinary_s)
        leaked = await asyncio.to_thread(overload.pages_leaked)
    grown = {name: max(mib for _, mib in lines) - lines[0][1] for name, lines in overload.memory.samples.items()}
    figures = {
        "saturation_requests_per_s": peak,
        "goodput_at_1x": once.good / seconds,
        "goodput_at_5x": many.good / seconds,
        "goodput_ratio_overload_to_saturation": many.good / max(once.good, 1),
        "requests_sent": float(many.sent),
        "requests_done": float(many.done),
        "requests_late": float(many.late),
        "requests_slow": float(many.slow),
        "requests_refused": float(many.refused),
        "refused_without_hint": float(once.refused_without_hint + many.refused_without_hint),
        "requests_failed": float(sum((once.failed + many.failed).values())),
        "refusal_s_p50": median(many.refusals_s) if many.refusals_s else 0.0,
        "queued_max": float(many.queued_max),
        "live_max": float(many.live_max),
        "router_mib_before": overload.memory.samples["router"][0][1],
        "router_mib_grown": grown["router"],
        "worker_mib_grown_max": max(value for name, value in grown.items() if name != "router"),
        "recovery_s": recovery_s,
        "pages_leaked": float(leaked),
    }
    return figures, {"failed": dict(once.failed + many.failed), "memory": overload.memory.samples}


def measure(seconds: float, peak_s: float, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """A whole run with a Ray of its own, which is gone afterwards."""
    overrides: dict[str, dict[str, Any]] = {
        "pools": dict(POOLS),
        "engine": {"num_pages": 400, "threads": 1},
        "router": {"port": 0, "admin_port": 0},
        "model": {"dtype": "float32", "path": str(CHECKPOINT)},
    }
    ray = start_local_ray()
    try:
        with connected(ray):
            started = start_cluster(resolve_here(parse_config("", overrides)), lambda process, stage: None)
            return asyncio.run(run(started, seconds, peak_s, seed))
    finally:
        ray.stop()


def main() -> None:
    parser = arguments(__doc__, "python -m tests.reliability.overload --seconds 30")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each load")
    args = parser.parse_args()
    report = Report("overload", GOALS)
    with progress(1) as step:
        step("overload")
        seconds, peak_s = args.pick((args.seconds, PEAK_S), (5.0, 4.0), (2.0, 1.0))
        report.figures, report.details = measure(seconds, peak_s, args.seed)
    report.setting = {"seconds": seconds, "seed": args.seed}
    report.publish(args)


if __name__ == "__main__":
    main()
