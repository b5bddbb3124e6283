"""Placement policies under one simulator: the same arrivals for each, over a range of loads.

Every policy runs with the same router core, workers, predictions and network; only its decisions differ. The policies
are compared at the highest load at which Baton's own policy meets the objectives of 90 % of the requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from baton.harness.report import Goal, Options, Report, arguments, progress
from baton.router.policy.policies import NAMES
from baton.simulator.setup import Pools, Setup, page_size_for
from baton.simulator.trace import TraceRequest, read_trace, scale_arrivals

OURS = "predicted_latency"
SERVE_LATE = "predicted_latency, no refusals"
ATTAINMENT = 0.9
GOALS = {
    "goodput_ratio_to_round_robin": Goal(1.5),
    "goodput_ratio_to_best_peer": Goal(1.1),
    "ttft_p99_ratio_to_best_peer": Goal(1.0, at_most=True),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """The parameters of a simulation except policy and load."""

    trace: tuple[TraceRequest, ...]
    setup: Setup
    pools: Pools


def simulate(job: tuple[Setting, str, float]) -> dict[str, float]:
    """The figures of one policy at one load."""
    setting, policy, scale = job
    name, refuse_late = (OURS, False) if policy == SERVE_LATE else (policy, True)
    setup = replace(setting.setup, policy=name, refuse_late=refuse_late)
    result = setup.simulate(setting.pools, scale_arrivals(setting.trace, scale))
    assert len(result.outcomes) == len(setting.trace)
    return result.figures()


Run = Callable[[Iterable[tuple[Setting, str, float]]], list[dict[str, float]]]


def find_load(setting: Setting, run: Run, scales: Sequence[float], steps: int) -> float:
    """The arrival scale at which our policy's attainment is `ATTAINMENT`, by bisection between two of `scales`."""
    attained = [figures["slo_attainment"] for figures in run([(setting, OURS, scale) for scale in scales])]
    low = max((scale for scale, share in zip(scales, attained, strict=True) if share >= ATTAINMENT), default=scales[0])
    high = min((scale for scale, share in zip(scales, attained, strict=True) if share < ATTAINMENT), default=2 * low)
    for _ in range(steps):
        middle = (low + high) / 2
        (figures,) = run([(setting, OURS, middle)])
        low, high = (middle, high) if figures["slo_attainment"] >= ATTAINMENT else (low, middle)
    return low


def plot(path: Path, curves: dict[str, dict[float, dict[str, float]]], load: float) -> None:
    """Plot goodput over offered load, a line per policy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    for policy, curve in curves.items():
        points = [(figures["requests_per_s"], figures["goodput"]) for _, figures in sorted(curve.items())]
        axes.plot(*zip(*points, strict=True), marker="o", linewidth=2.5 if policy == OURS else 1.2, label=policy)
    offered = next(iter(curves.values()))[load]["requests_per_s"]
    axes.axvline(offered, color="grey", linestyle=":", label="compared here")
    axes.axline((0, 0), slope=1.0, color="lightgrey", linewidth=1.0)
    axes.set(xlabel="offered requests/s", ylabel="goodput, requests/s", title="Requests that meet both objectives")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def print_curves(curves: dict[str, dict[float, dict[str, float]]]) -> None:
    """Print goodput and attainment: a row per policy, a column per load."""
    loads = sorted(next(iter(curves.values())))
    offered = [next(iter(curves.values()))[load]["requests_per_s"] for load in loads]
    table = Table("goodput (attainment) at", *(f"{rate:.1f}/s" for rate in offered), title_justify="left")
    for policy, curve in curves.items():
        cells = [f"{curve[load]['goodput']:.1f} ({100 * curve[load]['slo_attainment']:.0f} %)" for load in loads]
        table.add_row(policy, *cells)
    Console().print(table)


def figures_at(
    curves: dict[str, dict[float, dict[str, float]]], load: float, scales: Sequence[float]
) -> dict[str, float]:
    """The goals' figures at one load, the ratio of the best goodputs at any load, and every policy's at `scales`."""
    at = {policy: curve[load] for policy, curve in curves.items()}
    peers = [policy for policy in curves if policy not in (OURS, SERVE_LATE)]
    best = max(peers, key=lambda policy: (at[policy]["goodput"], policy))
    peak = {policy: max(figures["goodput"] for figures in curve.values()) for policy, curve in curves.items()}
    figures = {
        "goodput_ratio_to_round_robin": at[OURS]["goodput"] / at["round_robin"]["goodput"],
        "goodput_ratio_to_best_peer": at[OURS]["goodput"] / at[best]["goodput"],
        "ttft_p99_ratio_to_best_peer": at[OURS]["ttft_s_p99"] / min(at[peer]["ttft_s_p99"] for peer in peers),
        "goodput_ratio_without_refusals": at[SERVE_LATE]["goodput"] / at[best]["goodput"],
        "peak_goodput_ratio_to_best_peer": peak[OURS] / max(peak[peer] for peer in peers),
        "offered_requests_per_s": at[OURS]["requests_per_s"],
    }
    for policy in curves:
        slug = policy.replace(", ", "_").replace(" ", "_")
        figures[f"goodput_{slug}"] = at[policy]["goodput"]
        figures[f"attainment_{slug}"] = at[policy]["slo_attainment"]
        figures[f"attainment_of_the_longest_tenth_{slug}"] = at[policy]["slo_attainment_longest_tenth"]
        figures[f"ttft_s_p99_{slug}"] = at[policy]["ttft_s_p99"]
        for scale in scales:
            figures[f"offered_requests_per_s_x{scale:g}"] = curves[policy][scale]["requests_per_s"]
            figures[f"goodput_{slug}_x{scale:g}"] = curves[policy][scale]["goodput"]
            figures[f"attainment_{slug}_x{scale:g}"] = curves[policy][scale]["slo_attainment"]
    return figures


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.policies --trace mooncake_conversation.jsonl", full_s=7200.0)
    parser.add_argument("--trace", type=Path, required=True, help="a Mooncake JSONL or an Azure CSV trace")
    parser.add_argument("--requests", type=int, default=3000, help="number of requests from the trace; 0: all")
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--prefill", type=int, default=8)
    parser.add_argument("--decode", type=int, default=8)
    parser.add_argument("--page-size", type=int, help="tokens; default: the trace's blocks, else 64")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[2.0, 4.0, 6.0, 8.0, 12.0], help="arrival-rate multipliers"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw goodput over load into this file")
    options = parser.parse_args()
    measure(options)


def measure(options: Options) -> None:
    """Find the load, run every policy at it and at `scales`, and publish."""
    requests = options.pick(options.requests, 150, 24)
    trace = tuple(read_trace(options.trace)[: requests or None])
    setup = Setup(options.model, options.gpu, page_size=page_size_for(trace, options.page_size), seed=options.seed)
    setting = Setting(trace, setup, Pools(options.prefill, options.decode))
    scales = [4.0, 16.0] if options.quick else options.scales
    policies = [OURS, SERVE_LATE, *(name for name in NAMES if name != OURS)]
    with ProcessPoolExecutor(options.jobs) as pool, progress(len(policies) + 1) as step:

        def run(jobs: Iterable[tuple[Setting, str, float]]) -> list[dict[str, float]]:
            return list(pool.map(simulate, jobs))

        step("finding the load")
        load = find_load(setting, run, scales, 0 if options.quick else 4)
        loads = sorted({*scales, load})
        curves: dict[str, dict[float, dict[str, float]]] = {}
        for policy in policies:
            step(policy)
            results = run([(setting, policy, scale) for scale in loads])
            curves[policy] = dict(zip(loads, results, strict=True))
    print_curves(curves)
    report = Report("policies", GOALS, figures_at(curves, load, scales))
    report.setting = {
        "trace": options.trace.name,
        "requests": len(trace),
        "model": options.model,
        "gpu": options.gpu,
        "prefill": options.prefill,
        "decode": options.decode,
        "load": f"{load:.2f} times the trace's",
        "seed": options.seed,
    }
    report.details = {"curves": curves}
    if options.plot is not None:
        plot(options.plot, curves, load)
    report.publish(options)


if __name__ == "__main__":
    main()
