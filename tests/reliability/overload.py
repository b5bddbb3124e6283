"""Five times the load that saturates: refusals come at once with a hint, and admitted requests keep their objectives.

A Ray of its own with router, gateway, 1 prefill and 2 decode workers of the built-in model. The run first measures the
cluster's maximum request rate. It then sends requests with objectives at random moments, at that rate and at five times
that rate, for equally long. Refused requests are not sent again. After each of the two loads it sends ordinary requests
one by one until one is answered as fast as on the idle cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import baton
from baton.client.errors import Overloaded
from baton.deploy.launcher import Started
from baton.harness.load import Load, Sent
from baton.harness.report import Goal, Report, arguments, progress
from baton.protocol.request import Objectives
from tests.reliability.leaks import leaked_at_rest
from tests.reliability.memory import Memory, of_workers
from tests.reliability.ray_cluster import pids_of, ray_cluster
from tests.reliability.soak import peak_per_s

GOALS = {
    "goodput_ratio_overload_to_saturation": Goal(0.8),
    "requests_failed": Goal(0, at_most=True),
    "refused_without_hint": Goal(0, at_most=True),
    "pages_leaked": Goal(0, at_most=True),
}
POOLS = {"prefill": 1, "decode": 2}
PROMPT_TOKENS = (200, 800)  # long prompts and short answers keep the workers busy, not this client
OPTIONS: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True, "temperature": 0.8}
ORDINARY_PROMPT = [7, 9] * 250
TTFT_S, TPOT_S = 2.0, 0.2
OBJECTIVES = Objectives(ttft_s=TTFT_S, tpot_s=TPOT_S)
TIMES = 5
WIDTH, PEAK_S = 48, 10.0
SAMPLE_S = 0.5
ORDINARY = 1.5  # times the median of the idle cluster
RECOVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the requests of one load."""

    sent: Sequence[Sent]
    recovery_s: float
    queued_max: int
    live_max: int

    @property
    def late(self) -> list[Sent]:
        """Answers after the TTFT objective."""
        return [one for one in self.sent if one.ttft_s is not None and one.ttft_s > TTFT_S]

    @property
    def slow(self) -> list[Sent]:
        """Answers over the TPOT objective."""
        return [one for one in self.sent if one.tpot_s is not None and one.tpot_s > TPOT_S]

    @property
    def good(self) -> int:
        """Answers within both objectives."""
        missed = {one.request_id for one in (*self.late, *self.slow)}
        return sum(one.done and one.request_id not in missed for one in self.sent)

    @property
    def refused(self) -> list[Sent]:
        return [one for one in self.sent if isinstance(one.error, Overloaded)]

    @property
    def refused_without_hint(self) -> int:
        return sum(isinstance(one.error, Overloaded) and one.error.retry_after_s is None for one in self.sent)

    @property
    def failed(self) -> Counter[str]:
        """Errors that are not refusals."""
        errors = [one.error for one in self.sent if one.error is not None and not isinstance(one.error, Overloaded)]
        return Counter(f"{type(error).__name__}: {error.message}" for error in errors)


@dataclass(eq=False)
class Overload:
    """One run against a started cluster."""

    started: Started
    client: baton.AsyncClient
    rng: random.Random
    memory: Memory

    def load(self, objectives: Objectives | None = None) -> Load:
        options = OPTIONS if objectives is None else {**OPTIONS, "objectives": objectives}
        return Load(self.client, options, fresh_tokens=PROMPT_TOKENS, rng=self.rng)

    async def run(self, per_s: float, seconds: float, ordinary_s: float) -> Outcome:
        """Arrivals with objectives, and the recovery from them."""
        load, queued, live = self.load(OBJECTIVES), [0], [0]

        async def watch() -> None:
            while True:
                cluster = await asyncio.to_thread(self._cluster)
                queued.append(cluster.queued_requests)
                live.append(cluster.live_requests)
                await asyncio.sleep(SAMPLE_S)

        async with self.memory.sampled(SAMPLE_S), asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            await load.arrivals(per_s, seconds)
            recovery_s = await self.recovery(ordinary_s)
            await load.settled()
            watching.cancel()
        return Outcome(load.ended, recovery_s, max(queued), max(live))

    def _cluster(self) -> Any:
        with baton.Admin(self.started.admin_address) as admin:
            return admin.cluster()

    async def latency(self) -> float:
        """Seconds of one ordinary request."""
        begun_s = time.monotonic()
        await self.client.generate(ORDINARY_PROMPT, **OPTIONS)
        return time.monotonic() - begun_s

    async def recovery(self, ordinary_s: float) -> float:
        """Seconds from now until a request is sent that is answered as fast as on an idle cluster."""
        begun_s = time.monotonic()
        while (asked_s := time.monotonic() - begun_s) < RECOVERY_S:
            with contextlib.suppress(Overloaded):
                if await self.latency() <= ORDINARY * ordinary_s:
                    return asked_s
        return RECOVERY_S


async def measure(
    started: Started, seconds: float, peak_s: float, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and details of a run."""
    memory = Memory(await asyncio.to_thread(pids_of, started))
    async with baton.AsyncClient(started.address) as client:
        overload = Overload(started, client, random.Random(seed), memory)
        await peak_per_s(overload.load(), WIDTH, peak_s / 2)  # step times are learned, caches fill
        peak = await peak_per_s(overload.load(), WIDTH, peak_s)
        ordinary_s = median([await overload.latency() for _ in range(5)])
        once = await overload.run(peak, seconds, ordinary_s)
        memory.samples.clear()
        many = await overload.run(TIMES * peak, seconds, ordinary_s)
    leaked = await leaked_at_rest(started.admin_address, len(started.workers))
    figures = {"saturation_requests_per_s": peak, **figures_of(once, many, seconds, memory)}
    details = {"failed": dict(once.failed + many.failed), "memory": memory.samples}
    return {**figures, "pages_leaked": float(leaked)}, details


def figures_of(once: Outcome, many: Outcome, seconds: float, memory: Memory) -> dict[str, float]:
    """Counts are of the overload, unless named otherwise."""
    grown = memory.grown_mib()
    refusals_s = [one.ended_s - one.begun_s for one in many.refused if one.ended_s is not None]
    return {
        "goodput_at_1x": once.good / seconds,
        "goodput_at_5x": many.good / seconds,
        "goodput_ratio_overload_to_saturation": many.good / max(once.good, 1),
        "requests_sent": float(len(many.sent)),
        "requests_done": float(sum(one.done for one in many.sent)),
        "requests_late": float(len(many.late)),
        "requests_slow": float(len(many.slow)),
        "requests_refused": float(len(many.refused)),
        "refused_without_hint": float(once.refused_without_hint + many.refused_without_hint),
        "requests_failed": float((once.failed + many.failed).total()),
        "refusal_s_p50": median(refusals_s) if refusals_s else 0.0,
        "queued_max": float(many.queued_max),
        "live_max": float(many.live_max),
        "gateway_mib_before": memory.samples["gateway-0"][0][1],
        "gateway_mib_grown": grown["gateway-0"],
        "router_mib_before": memory.samples["router"][0][1],
        "router_mib_grown": grown["router"],
        "worker_mib_grown_max": max(of_workers(grown)),
        "recovery_s": many.recovery_s,
    }


def main() -> None:
    parser = arguments(__doc__, "python -m tests.reliability.overload --seconds 30")
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of each of the two loads")
    args = parser.parse_args()
    report = Report("overload", GOALS)
    with progress(1) as step, ray_cluster(POOLS) as started:
        step("overload")
        seconds, peak_s = args.pick((args.seconds, PEAK_S), (5.0, 4.0), (2.0, 1.0))
        report.figures, report.details = asyncio.run(measure(started, seconds, peak_s, args.seed))
    report.setting = {"seconds": seconds, "seed": args.seed}
    report.publish(args)


if __name__ == "__main__":
    main()
