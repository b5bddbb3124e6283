"""What moving workers and sequences costs: seconds per switch, the gap that a migration leaves, wrong tokens.

A live cluster of the built-in model (2 prefill, 2 decode, each a process). Clients stream without pause; each token is
stamped when it reaches its client, and answers are compared with undisturbed ones. A migration's gap is the longest
pause of its stream from the command until the sequence has arrived, in decode steps of the same run. A machine with
fewer cores than workers has such pauses by itself, so the longest pause of undisturbed streams stands beside it.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import baton
from baton.builtin_model import CHECKPOINT
from baton.harness.load import Load, Sent
from baton.harness.process_cluster import ProcessCluster, operate, plans
from baton.harness.report import Goal, Report, arguments, progress
from baton.router.core.operation import Migrate, Operation, OperationSpec, OperationState, Rebalance

GOALS = {
    "switch_idle_s": Goal(1.0, at_most=True),
    "migration_gap_decode_steps_max": Goal(3.0, at_most=True),
    "tokens_wrong": Goal(0.0, at_most=True),
    "requests_failed": Goal(0.0, at_most=True),
}
PROMPT_TOKENS, OUTPUT_TOKENS = 96, 400
OPTIONS: dict[str, Any] = {"max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "temperature": 0.7}
STREAMS = 6
CONTEXT_TOKENS, NUM_PAGES = 1024, 2048


def longest_gap_s(sent: Sent, start_s: float = 0.0, end_s: float = float("inf")) -> float:
    """The longest pause between two tokens, among those that touch the interval."""
    pairs = pairwise(sent.shown_s)
    return max((after - before for before, after in pairs if after > start_s and before < end_s), default=0.0)


async def timed(cluster: ProcessCluster, what: OperationSpec) -> tuple[Operation, float, float]:
    """An operation to its end, with the moments of command and end."""
    start_s = time.monotonic()
    return await operate(cluster, what), start_s, time.monotonic()


async def switch_times(cluster: ProcessCluster, count: int) -> list[tuple[float, float]]:
    """(start, end) of this many single switches, back and forth."""
    spans = []
    for index in range(count):
        operation, start_s, end_s = await timed(cluster, Rebalance(3, 1) if index % 2 == 0 else Rebalance(2, 2))
        assert operation.state is OperationState.DONE, operation.message
        spans.append((start_s, end_s))
    return spans


async def migrate(
    cluster: ProcessCluster, load: Load, count: int, rng: random.Random
) -> list[tuple[Sent, float, float]]:
    """Move `count` running sequences, one after the other; each with the moments of command and arrival."""
    moved: list[tuple[Sent, float, float]] = []
    records = cluster.router.driver.core.operations.records
    while len(moved) < count:
        movable = [one for one in load.live.values() if 16 < len(one.shown_s) < OUTPUT_TOKENS - 100]
        movable = [one for one in movable if one.request_id in records and records[one.request_id].may_move(0.0)]
        if not movable:
            await asyncio.sleep(0.005)
            continue
        sent = rng.choice(movable)
        operation, start_s, end_s = await timed(cluster, Migrate(sent.request_id))
        if operation.state is OperationState.DONE:
            moved.append((sent, start_s, end_s))
        await asyncio.sleep(0.05)  # the next one finds the streams running evenly again
    return moved


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    switches: int
    steady_s: float
    migrations: int


async def measure(size: Size, seed: int, step: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and details of a run."""
    rng = random.Random(seed)
    prompts = [rng.choices(range(3, 256), k=PROMPT_TOKENS) for _ in range(6)]
    router_config, worker_config = plans(CHECKPOINT, CONTEXT_TOKENS, NUM_PAGES, policy="least_loaded")
    async with (
        ProcessCluster(router_config, worker_config, {"prefill": 2, "decode": 2}) as cluster,
        baton.AsyncClient(cluster.address) as client,
    ):
        step("undisturbed answers")
        load = Load(client, OPTIONS, prompts, rng=random.Random(seed))
        await load.learn()
        step("switches, idle")
        idle = await switch_times(cluster, size.switches)
        step("steady streams")
        async with load.clients(STREAMS):
            await cluster.until(lambda: bool(load.live) and all(len(one.shown_s) > 8 for one in load.live.values()))
            begun_s = time.monotonic()
            await asyncio.sleep(size.steady_s)
            steady = (begun_s, time.monotonic())
            undisturbed = [one for one in (*load.ended, *load.live.values()) if one.error is None]
            gaps = [after - before for one in undisturbed for before, after in pairwise(one.shown_s[2:])]
            step("switches, busy")
            busy = await switch_times(cluster, size.switches)
            step("migrations")
            moved = await migrate(cluster, load, size.migrations, rng)
    return figures_of(load, idle, busy, steady, gaps, moved)


def figures_of(
    load: Load,
    idle: list[tuple[float, float]],
    busy: list[tuple[float, float]],
    steady: tuple[float, float],
    gaps: list[float],
    moved: list[tuple[Sent, float, float]],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and details from the spans of switches, the undisturbed gaps, and the moved streams."""
    idle_s, busy_s = ([end_s - start_s for start_s, end_s in spans] for spans in (idle, busy))
    decode_step_s = median(gaps)
    moved_gaps = sorted(longest_gap_s(one, start_s, end_s + 0.02) / decode_step_s for one, start_s, end_s in moved)
    per_s_during = sum(load.tokens_between(*span) for span in busy) / sum(busy_s)
    per_s_steady = load.tokens_between(*steady) / (steady[1] - steady[0])
    figures = {
        "switch_idle_s": median(idle_s),
        "switch_idle_s_max": max(idle_s),
        "switch_busy_s": median(busy_s),
        "switch_busy_s_max": max(busy_s),
        "tokens_per_s_share_during_switch": per_s_during / per_s_steady,
        "stream_gap_s_max_during_switches": max(longest_gap_s(one, busy[0][0], busy[-1][1]) for one in load.ended),
        "stream_gap_s_max_undisturbed": max(gaps),
        "decode_step_ms": 1000 * decode_step_s,
        "migration_gap_decode_steps_max": moved_gaps[-1],
        "migration_gap_decode_steps_p90": moved_gaps[int(0.9 * len(moved_gaps))],
        "migration_gap_decode_steps_median": median(moved_gaps),
        "undisturbed_gap_decode_steps_max": max(gaps) / decode_step_s,
        "undisturbed_gap_decode_steps_p99": sorted(gaps)[int(0.99 * len(gaps))] / decode_step_s,
        "requests_served": float(len(load.ended)),
        "requests_failed": float(sum(one.error is not None for one in load.ended)),
        "tokens_wrong": float(sum(one.wrong + one.missing + one.repeated for one in load.ended)),
    }
    return figures, {"switch_busy": busy_s, "switch_idle": idle_s, "gaps": moved_gaps}


def draw(details: dict[str, Any], path: Path) -> None:
    """Switch times and migration gaps, each sorted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("switch_idle", "switch_busy"):
        left.plot(sorted(details[name]), marker="o", label=name.replace("_", " "))
    left.set(ylabel="seconds", xlabel="switches, sorted", title="From command to verified service", ylim=(0, None))
    left.legend()
    right.plot(sorted(details["gaps"]), marker="o")
    right.axhline(3, color="grey", linestyle="--")
    right.set(
        ylabel="decode steps", xlabel="migrations, sorted", title="Longest pause of a moved stream", ylim=(0, None)
    )
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.rebalance --quick --json rebalance.json --plot rebalance.png")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw switch times and gaps (needs baton[plots])")
    args = parser.parse_args()
    report = Report("rebalance", GOALS)
    size = args.pick(Size(20, 10.0, 50), Size(6, 4.0, 10), Size(2, 1.0, 2))
    with progress(5) as step:
        report.figures, report.details = asyncio.run(measure(size, args.seed, step))
    report.setting = {"model": "built-in", "streams": STREAMS, "workers": "2 prefill + 2 decode", "seed": args.seed}
    if args.plot:
        draw(report.details, args.plot)
    report.publish(args)


if __name__ == "__main__":
    main()
