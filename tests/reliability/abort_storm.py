"""Nine of ten clients leave within a second, several times: their pages are freed, and throughput stays.

A router and three workers of the built-in model, each a process, under a fixed number of streams. A client that leaves
is replaced at once by a client with a new request, so the load before and after a storm is the same. Each answer that
is not cancelled is compared with that of an idle cluster.
"""

from __future__ import annotations

import asyncio
import random
import time
from statistics import median
from typing import Any

import baton
from baton.builtin_model import CHECKPOINT
from baton.harness.load import Load
from baton.harness.process_cluster import ProcessCluster, plans
from baton.harness.report import Goal, Report, arguments, progress
from tests.reliability.leaks import check_pages, leaked, leaked_at_rest

GOALS = {
    "throughput_share_after_2s": Goal(0.9),
    "pages_leaked": Goal(0, at_most=True),
    "answers_wrong": Goal(0, at_most=True),
}
POOLS = {"prefill": 1, "decode": 2}
PROMPTS = [[5 + index] * (20 + 9 * index) for index in range(6)]
MAX_TOKENS = 160
STORMS, SHARE, LEAVE_WITHIN_S = 3, 0.9, 1.0
BEFORE_S, AFTER_S = 4.0, 2.0  # throughput is measured for so long before a storm, and from 2 s after it on


def crowd(client: baton.AsyncClient, seed: int, max_tokens: int = MAX_TOKENS) -> Load:
    """The load of a run."""
    options = {"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0.8}
    return Load(client, options, PROMPTS, rng=random.Random(seed))


def storm_cluster() -> ProcessCluster:
    """A cluster whose pages and batches do not hold the whole crowd at once."""
    router_config, worker_config = plans(CHECKPOINT, 256, 600, policy="least_loaded", chunk_tokens=128, max_batch=32)
    return ProcessCluster(router_config, worker_config, POOLS)


async def tokens_per_s(load: Load, seconds: float) -> float:
    """The rate of tokens over the next seconds."""
    begun_s = time.monotonic()
    await asyncio.sleep(seconds)
    end_s = time.monotonic()
    return load.tokens_between(begun_s, end_s) / (end_s - begun_s)


async def measure(width: int, storms: int, pace: float, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """`pace` is 1 in a full run; a smaller one shortens every wait."""
    before, after = [], []
    async with storm_cluster() as cluster, baton.AsyncClient(cluster.address) as client:
        load = crowd(client, seed)
        await load.learn()
        async with load.clients(width):
            await asyncio.sleep(pace * BEFORE_S)
            for _ in range(storms):
                before.append(await tokens_per_s(load, pace * BEFORE_S))
                await load.leave(SHARE, pace * LEAVE_WITHIN_S)
                await asyncio.sleep(pace * 2.0)
                after.append(await tokens_per_s(load, pace * AFTER_S))
            busy = await check_pages(cluster.admin_address)
        at_rest = await leaked_at_rest(cluster.admin_address, len(cluster.names))
    shares = [late / early for early, late in zip(before, after, strict=True)]
    figures = {
        "throughput_share_after_2s": median(shares),
        "throughput_share_worst": min(shares),
        "tokens_per_s_before": median(before),
        "tokens_per_s_after": median(after),
        "clients_left": float(len(load.left)),
        "answers": float(len(load.done)),
        "answers_wrong": float(len(load.wrong)),
        "pages_leaked": float(leaked(busy) + at_rest),
    }
    return figures, {"shares": shares, "wrong": load.wrong[:10]}


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
