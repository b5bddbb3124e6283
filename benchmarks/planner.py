"""The pool planner under the simulator, against every fixed split: on a shifting mix of requests and on a steady one.

The shifting trace alternates between long prompts with short answers and short prompts with long answers. Each phase's
rate loads its own best split about equally. The steady trace has both kinds at once at half their rates. Every fixed
split gets the same arrivals as the planner, which starts from equal pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from baton.harness.phases import LONG_ANSWERS, LONG_PROMPTS, phases
from baton.harness.report import Goal, Options, Report, arguments, progress
from baton.simulator.setup import Pools, Setup, described_slo, page_size_for
from baton.simulator.simulation import Slo
from baton.simulator.trace import TraceRequest, read_trace, scale_arrivals

GOALS = {
    "goodput_ratio_to_best_static_shifting": Goal(1.2),
    "goodput_ratio_to_best_static_steady": Goal(0.97),
}
AUTO = "auto"


def shifting(phase_s: float, load: float, seed: int) -> list[TraceRequest]:
    """Four phases, which alternate between the two kinds of requests."""
    return phases([[LONG_PROMPTS], [LONG_ANSWERS]] * 2, phase_s, load, seed)


def steady(span_s: float, load: float, seed: int) -> list[TraceRequest]:
    """Both kinds of requests at once, at half their rates."""
    return phases([[LONG_PROMPTS, LONG_ANSWERS]], span_s, load / 2, seed)


@dataclass(frozen=True, slots=True)
class Job:
    """One simulation that starts with these pools; `setup.auto` lets the planner change them."""

    part: str
    split: str
    setup: Setup
    pools: Pools
    trace: tuple[TraceRequest, ...]


def simulate(job: Job) -> dict[str, float]:
    """The figures of one simulation."""
    return job.setup.simulate(job.pools, job.trace).figures()


def jobs_for(part: str, setup: Setup, workers: int, trace: Sequence[TraceRequest], splits: Sequence[int]) -> list[Job]:
    """A job for every fixed split, and one for the planner from equal pools."""
    equal = Pools(workers // 2, workers - workers // 2)
    made = [Job(part, f"{k} + {workers - k}", setup, Pools(k, workers - k), tuple(trace)) for k in splits]
    return [*made, Job(part, AUTO, replace(setup, auto=True), equal, tuple(trace))]


Results = dict[str, dict[str, dict[str, float]]]  # part → split → figures


def print_results(results: Results) -> None:
    """Print goodput and attainment: a row per split, a column per part."""
    table = Table("prefill + decode", *results, title="goodput (attainment)", title_justify="left")
    for split in next(iter(results.values())):
        cells = []
        for by_split in results.values():
            figures = by_split.get(split)
            cell = f"{figures['goodput']:.2f} ({100 * figures['slo_attainment']:.0f} %)" if figures else ""
            switches = f", {figures['role_switches']:.0f} switches" if figures and split == AUTO else ""
            cells.append(cell + switches)
        table.add_row(split, *cells)
    Console().print(table)


def ratios(by_split: dict[str, dict[str, float]], equal: str) -> tuple[float, float, str]:
    """The planner's goodput over that of the best fixed split, over that of equal pools, and the best split's name."""
    static = {split: figures["goodput"] for split, figures in by_split.items() if split != AUTO}
    best = max(static, key=lambda split: (static[split], split))
    auto = by_split[AUTO]["goodput"]
    return auto / max(static[best], 1e-9), auto / max(static[equal], 1e-9), best


def neighbours(by_split: dict[str, dict[str, float]], splits: Sequence[int], half: int) -> list[int]:
    """The best fixed split, its neighbours, and the equal one."""
    best = int(ratios(by_split, next(iter(by_split)))[2].split()[0])
    return [split for split in splits if abs(split - best) <= 1 or split == half]


def figures_of(results: Results, equal: str) -> dict[str, float]:
    """All figures; the headline ratios are of the first shifting and the first steady part."""
    figures: dict[str, float] = {}
    headlines = {"shifting": "shifting", "steady": "steady"}
    for part, by_split in results.items():
        to_best, to_equal, best = ratios(by_split, equal)
        slug = part.replace(" ×", "_x").replace(" ", "_")
        name = headlines.pop(part.split()[0], None) or slug
        figures[f"goodput_ratio_to_best_static_{name}"] = to_best
        figures[f"goodput_ratio_to_no_change_{name}"] = to_equal
        figures[f"attainment_best_static_{name}"] = by_split[best]["slo_attainment"]
        for split, one in by_split.items():
            figures[f"goodput_{slug}_{split.replace(' ', '')}"] = one["goodput"]
            figures[f"attainment_{slug}_{split.replace(' ', '')}"] = one["slo_attainment"]
        figures[f"role_switches_{name}"] = by_split[AUTO]["role_switches"]
    return figures


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.planner --jobs 2", full_s=5400.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--tpot", type=float, default=0.02, help="objective, seconds")
    parser.add_argument("--phase", type=float, default=60.0, help="seconds per phase; the steady trace is one phase")
    parser.add_argument("--loads", type=float, nargs="+", default=[1.15, 1.0], help="multiples of the default rates")
    parser.add_argument(
        "--trace", type=Path, help="a Mooncake JSONL or an Azure CSV trace, in place of the synthetic ones"
    )
    parser.add_argument("--requests", type=int, default=2000, help="number of requests from --trace")
    parser.add_argument("--scales", type=float, nargs="+", default=[4.0], help="arrival-rate multipliers of --trace")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    measure(parser.parse_args())


def parts(options: Options) -> dict[str, list[TraceRequest]]:
    """The traces to simulate, by name."""
    if options.trace is not None:
        trace = read_trace(options.trace)[: options.pick(options.requests, 200, 40)]
        return {f"{options.trace.stem} ×{scale:g}": scale_arrivals(trace, scale) for scale in options.scales}
    phase_s = options.pick(options.phase, 15.0, 2.0)
    loads = options.loads[:1] if options.quick else options.loads
    made = {f"shifting ×{load:g}": shifting(phase_s, load, options.seed) for load in loads}
    return {**made, f"steady ×{loads[0]:g}": steady(phase_s, loads[0], options.seed)}


def measure(options: Options) -> None:
    """Simulate every part with every split, and publish."""
    workers = options.workers
    half = workers // 2
    splits = options.pick(list(range(1, workers)), sorted({2, half, workers - 2}), [half])
    traces = parts(options)
    page_size = page_size_for(next(iter(traces.values())), None)
    setup = Setup(options.model, options.gpu, slo=Slo(tpot_s=options.tpot), page_size=page_size, seed=options.seed)
    results: Results = {}
    headline = next(iter(traces))
    with ProcessPoolExecutor(options.jobs) as pool, progress(len(traces) * (len(splits) + 1)) as step:
        for part, trace in traces.items():
            # For other loads of the same trace, only the splits next to the best one of the first load are tried.
            near = part != headline and part.split()[0] == headline.split()[0]
            tried = neighbours(results[headline], splits, half) if near else splits
            jobs = jobs_for(part, setup, workers, trace, tried)
            results[part] = {}
            for job, figures in zip(jobs, pool.map(simulate, jobs), strict=True):
                step(f"{job.part}: {job.split}")
                results[part][job.split] = figures
    print_results(results)
    report = Report("planner", GOALS, figures_of(results, f"{half} + {workers - half}"))
    report.setting = {
        "requests": {part: len(trace) for part, trace in traces.items()},
        "model": options.model,
        "gpu": options.gpu,
        "workers": workers,
        "objectives": described_slo(setup.slo),
        "phase_s": options.pick(options.phase, 15.0, 2.0),
        "seed": options.seed,
    }
    report.details = {"splits": results}
    report.publish(options)


if __name__ == "__main__":
    main()
