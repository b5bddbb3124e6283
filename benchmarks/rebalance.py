"""What moving workers and sequences costs: seconds per switch, the gap a migration leaves, tokens lost meanwhile.

A live cluster of the built-in model (2 prefill, 2 decode, each a process). Streams come one after the other without
pause; their tokens are stamped where the router shows them and compared with an undisturbed run. A migration's gap is
the longest pause of its stream from the command until it has arrived, in decode steps of the same run; a machine with
fewer cores than workers has such pauses by itself, so the longest pause of undisturbed streams stands beside it.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from baton.builtin_model import CHECKPOINT
from baton.harness.process_cluster import ProcessCluster, plans
from baton.harness.report import Goal, Report, arguments, progress
from baton.protocol.errors import BatonError, Cancelled
from baton.protocol.request import Request, SamplingParams
from baton.router.core.operation import Ask, Migrate, Operation, OperationState, Rebalance

GOALS = {
    "switch_idle_s": Goal(1.0, at_most=True),
    "migration_gap_decode_steps_max": Goal(3.0, at_most=True),
    "tokens_wrong": Goal(0.0, at_most=True),
    "requests_failed": Goal(0.0, at_most=True),
}
PROMPT_TOKENS, OUTPUT_TOKENS = 96, 400
CONTEXT_TOKENS, NUM_PAGES = 1024, 2048


@dataclass(eq=False)
class Stream:
    """One answer: its tokens and when each was shown."""

    request_id: str
    prompt: tuple[int, ...]
    token_ids: list[int] = field(default_factory=list)
    shown_s: list[float] = field(default_factory=list)
    error: BatonError | None = None

    def longest_gap_s(self, start_s: float = 0.0, end_s: float = float("inf")) -> float:
        """The longest pause between two tokens, of those that touch the interval."""
        pairs = pairwise(self.shown_s)
        return max((after - before for before, after in pairs if after > start_s and before < end_s), default=0.0)


@dataclass(eq=False)
class Load:
    """`width` streams at any time, over a few prompts again and again."""

    cluster: ProcessCluster
    prompts: list[tuple[int, ...]]
    width: int
    done: list[Stream] = field(default_factory=list)
    live: dict[str, Stream] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _count: int = 0

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._serve()) for _ in range(self.width)]
        await self.cluster.until(lambda: all(len(one.shown_s) > 8 for one in self.live.values()) and bool(self.live))
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        core = self.cluster.router.driver.core
        await self.cluster.until(lambda: not core.live)

    async def _serve(self) -> None:
        while True:
            self._count += 1
            stream = Stream(f"s{id(self)}-{self._count}", self.prompts[self._count % len(self.prompts)])
            self.live[stream.request_id] = stream
            await ask(self.cluster, stream)
            del self.live[stream.request_id]
            self.done.append(stream)

    def tokens_between(self, start_s: float, end_s: float) -> int:
        streams = [*self.done, *self.live.values()]
        return sum(start_s <= moment < end_s for stream in streams for moment in stream.shown_s)


async def ask(cluster: ProcessCluster, stream: Stream) -> None:
    """Fill the stream with an answer."""
    driver = cluster.router.driver
    sampling = SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True, seed=1, temperature=0.7)
    subscription = driver.submit(Request(stream.request_id, stream.prompt, sampling, driver.clock()))
    ended: BatonError = Cancelled("The measurement is over.")
    try:
        while True:
            tokens, completion = await subscription.next()
            now = time.perf_counter()
            stream.token_ids += [token.token_id for token in tokens]
            stream.shown_s += [now] * len(tokens)
            if completion is not None:
                stream.error = completion.error
                return
    finally:
        driver.unsubscribe(subscription, ended)


async def operate(cluster: ProcessCluster, what: Ask) -> tuple[Operation, float, float]:
    """An operation to its end, with the moments of command and end."""
    driver = cluster.router.driver
    start_s = time.perf_counter()
    operation = driver.start_operation("", what, False)
    async for moved in driver.watch(operation.operation_id):
        operation = moved
    return operation, start_s, time.perf_counter()


async def switch_times(cluster: ProcessCluster, count: int) -> list[tuple[float, float]]:
    """(start, end) of so many single switches, back and forth."""
    spans = []
    for index in range(count):
        operation, start_s, end_s = await operate(cluster, Rebalance(3, 1) if index % 2 == 0 else Rebalance(2, 2))
        assert operation.state is OperationState.DONE, operation.message
        spans.append((start_s, end_s))
    return spans


async def migrate(load: Load, count: int, rng: random.Random) -> list[tuple[Stream, float, float]]:
    """Move `count` running sequences, one after the other; each with the moments of command and arrival."""
    moved: list[tuple[Stream, float, float]] = []
    records = load.cluster.router.driver.core.operations.records
    while len(moved) < count:
        await asyncio.sleep(0)
        movable = [one for one in load.live.values() if 16 < len(one.shown_s) < OUTPUT_TOKENS - 100]
        movable = [one for one in movable if records[one.request_id].may_move(0.0)]
        if not movable:
            await asyncio.sleep(0.005)
            continue
        stream = rng.choice(movable)
        operation, start_s, end_s = await operate(load.cluster, Migrate(stream.request_id))
        if operation.state is OperationState.DONE:
            moved.append((stream, start_s, end_s))
        await asyncio.sleep(0.05)  # the next one finds the streams running evenly again
    return moved


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    switches: int
    steady_s: float
    migrations: int


async def measure(size: Size, seed: int, step: Any) -> tuple[dict[str, float], dict[str, Any]]:
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(3, 256) for _ in range(PROMPT_TOKENS)) for _ in range(6)]
    router_plan, worker_plan = plans(CHECKPOINT, CONTEXT_TOKENS, NUM_PAGES, policy="least_loaded")
    async with ProcessCluster(router_plan, worker_plan, {"prefill": 2, "decode": 2}) as cluster:
        step("undisturbed answers")
        expected: dict[tuple[int, ...], list[int]] = {}
        for index, prompt in enumerate(prompts):
            stream = Stream(f"expected-{index}", prompt)
            await ask(cluster, stream)
            expected[prompt] = stream.token_ids
        step("switches, idle")
        idle = [end_s - start_s for start_s, end_s in await switch_times(cluster, size.switches)]
        step("steady streams")
        async with Load(cluster, prompts, 6) as load:
            begun_s = time.perf_counter()
            await asyncio.sleep(size.steady_s)
            steady = load.tokens_between(begun_s, time.perf_counter()) / (time.perf_counter() - begun_s)
            undisturbed = [stream for stream in (*load.done, *load.live.values()) if not stream.error]
            gaps = [after - before for one in undisturbed for before, after in pairwise(one.shown_s[2:])]
            step("switches, busy")
            spans = await switch_times(cluster, size.switches)
            step("migrations")
            moved = await migrate(load, size.migrations, rng)
            live = list(load.live.values())
        served = load.done
    decode_step_s = median(gaps)
    moved_gaps = [one.longest_gap_s(start_s, end_s + 0.02) / decode_step_s for one, start_s, end_s in moved]
    during = sum(load.tokens_between(*span) for span in spans) / sum(end_s - start_s for start_s, end_s in spans)
    figures = {
        "switch_idle_s": median(idle),
        "switch_idle_s_max": max(idle),
        "switch_busy_s": median(end_s - start_s for start_s, end_s in spans),
        "switch_busy_s_max": max(end_s - start_s for start_s, end_s in spans),
        "tokens_per_s_share_during_switch": during / steady,
        "stream_gap_s_max_during_switches": max(
            one.longest_gap_s(spans[0][0], spans[-1][1]) for one in (*served, *live)
        ),
        "stream_gap_s_max_undisturbed": max(gaps),
        "decode_step_ms": 1000 * decode_step_s,
        "migration_gap_decode_steps_max": max(moved_gaps),
        "migration_gap_decode_steps_p90": sorted(moved_gaps)[int(0.9 * len(moved_gaps))],
        "migration_gap_decode_steps_median": median(moved_gaps),
        "undisturbed_gap_decode_steps_max": max(gaps) / decode_step_s,
        "undisturbed_gap_decode_steps_p99": sorted(gaps)[int(0.99 * len(gaps))] / decode_step_s,
        "requests_served": float(len(served)),
        "requests_failed": float(sum(one.error is not None for one in served)),
        "tokens_wrong": float(
            sum(a != b for one in served for a, b in zip(one.token_ids, expected[one.prompt], strict=True))
        ),
    }
    details = {"switch_busy": [end_s - start_s for start_s, end_s in spans], "switch_idle": idle, "gaps": moved_gaps}
    return figures, details


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
    report.setting = {"model": "built-in", "streams": 6, "workers": "2 prefill + 2 decode", "seed": args.seed}
    if args.plot:
        draw(report.details, args.plot)
    report.publish(args)


if __name__ == "__main__":
    main()
