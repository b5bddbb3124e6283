"""Steady load for a long time: whether memory grows, pages leak or answers are wrong.

A Ray of its own with router, gateway, 1 prefill and 2 decode workers of the built-in model. The run first measures the
cluster's maximum request rate, and then sends at `--load` of it, at random moments. Half of the prompts are new; the
others are repeated and their answers compared. Memory is sampled throughout; the first fifth of the samples does not
count.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import baton
from baton.deploy.launcher import Started
from baton.harness.load import Load
from baton.harness.report import Goal, Report, arguments, progress
from tests.reliability.leaks import leaked_at_rest
from tests.reliability.memory import Memory, of_workers
from tests.reliability.ray_cluster import pids_of, ray_cluster

GOALS = {
    name: Goal(0, at_most=True) for name in ("pages_leaked", "requests_failed", "answers_wrong", "requests_left_out")
}
POOLS = {"prefill": 1, "decode": 2}
OPTIONS: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True, "temperature": 0.8}
PROMPTS = [[5 + index] * (40 + 40 * index) for index in range(6)]
FRESH_TOKENS = (20, 300)
WIDTH, PEAK_S, MAX_OPEN = 24, 15.0, 200
SAMPLE_S = 1.0


async def peak_per_s(load: Load, width: int, seconds: float) -> float:
    """Answers per second when `width` clients send without pause."""
    begun_s, before = time.monotonic(), len(load.done)
    async with load.clients(width):
        await asyncio.sleep(seconds)
    return (len(load.done) - before) / (time.monotonic() - begun_s)


async def soak(
    started: Started, minutes: float, peak_s: float, share: float, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and details of a run at this share of the maximum rate."""
    memory = Memory(await asyncio.to_thread(pids_of, started))
    async with baton.AsyncClient(started.address) as client:
        load = Load(client, OPTIONS, PROMPTS, FRESH_TOKENS, random.Random(seed))
        await load.learn()
        peak = await peak_per_s(load, WIDTH, peak_s)
        async with memory.sampled(SAMPLE_S):
            left_out = await load.arrivals(share * peak, 60 * minutes, MAX_OPEN)
        await load.settled()
    failed = [sent.fault for sent in load.ended if sent.error is not None]
    slopes = memory.slopes()
    figures = {
        "minutes": minutes,
        "peak_requests_per_s": peak,
        "requests_done": float(len(load.done)),
        "requests_failed": float(len(failed)),
        "requests_left_out": float(left_out),
        "answers_wrong": float(len(load.wrong) - len(failed)),
        "gateway_mib": memory.samples["gateway-0"][-1][1],
        "gateway_mib_per_hour": slopes["gateway-0"],
        "router_mib": memory.samples["router"][-1][1],
        "router_mib_per_hour": slopes["router"],
        "worker_mib_per_hour_max": max(of_workers(slopes)),
        "pages_leaked": float(await leaked_at_rest(started.admin_address, len(started.workers))),
    }
    return figures, {"slopes": slopes, "samples": memory.samples, "wrong": load.wrong[:10]}


def main() -> None:
    parser = arguments(__doc__, "python -m tests.reliability.soak --minutes 6 --load 0.8", full_s=600.0)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--load", type=float, default=0.8, help="share of the maximum request rate")
    args = parser.parse_args()
    report = Report("soak", GOALS)
    with progress(1) as step, ray_cluster(POOLS, policy="least_loaded") as started:
        step("steady load")
        minutes, peak_s = args.pick((args.minutes, PEAK_S), (0.3, PEAK_S), (0.05, 2.0))
        report.figures, report.details = asyncio.run(soak(started, minutes, peak_s, args.load, args.seed))
    report.setting = {"load": args.load, "seed": args.seed}
    report.publish(args)


if __name__ == "__main__":
    main()
