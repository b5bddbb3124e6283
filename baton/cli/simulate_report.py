"""Output of `baton simulate` and `baton plan`: tables, and documents for `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from baton.cli.report import size
from baton.cli.table import Column, FittingTable, fitting, show
from baton.simulator.result import SimulationResult
from baton.simulator.search import Probe, SplitResult
from baton.simulator.setup import Pools, Setup
from baton.simulator.simulation import Slo

LATENCY_COLUMNS = (
    Column("latency"),
    Column("p50", 2, right=True),
    Column("p90", 1, right=True),
    Column("p99", 3, right=True),
)
SPLIT_COLUMNS = (
    Column("pools"),
    Column("goodput", 1),
    Column("load", 3, right=True),
    Column("objectives met", 2),
    Column("trials", 4, right=True),
)
CURVE_COLUMNS = (Column("load", right=True), Column("goodput", 1, right=True), Column("objectives met", 2, right=True))


def print_simulation(console: Console, result: SimulationResult, slo: Slo | None) -> None:
    """Print latencies, throughput, and the requests that met their objectives."""
    figures = result.figures()
    latencies = FittingTable(LATENCY_COLUMNS)
    for name, label in (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("itl_s", "ITL")):
        values = [figures.get(f"{name}_p{share}") for share in (50, 90, 99)]
        latencies.add_row(label, *(_seconds(value) for value in values))
    show(console, latencies)
    rows: dict[str, str] = {}
    if slo is not None:
        longest = _percent(figures["slo_attainment_longest_tenth"])
        rows["objectives met"] = (
            f"{_percent(figures['slo_attainment'])}; {longest} of the tenth with the longest prompts"
        )
    rows["goodput"] = f"{figures['goodput']:.2f} of {figures['requests_per_s']:.2f} requests/s"
    rows["refused"] = f"{figures['refused']:.0f} of {figures['requests']:.0f}"
    if figures["failed"]:
        rows["failed"] = f"{figures['failed']:.0f}: {', '.join(_failures(result))}"
    utilisation = [(name, value) for name, value in figures.items() if name.startswith("utilisation_")]
    rows["utilisation"] = ", ".join(
        f"{name.removeprefix('utilisation_')} {_percent(value)}" for name, value in utilisation
    )
    if figures["role_switches"]:
        rows["role switches"] = f"{figures['role_switches']:.0f}"
    rows["output"] = f"{figures['output_tokens_per_s']:,.0f} tokens/s"
    rows["prefix hits"] = f"{_percent(figures['prefix_hit_rate'])} of prompt tokens"
    rows["served locally"] = f"{_percent(figures['served_locally'])} of requests, on one worker"
    rows["transferred"] = f"{size(result.bytes_moved)} of KV pages"
    rows["simulated"] = f"{result.simulated_s:,.0f} s in {result.events:,} events"
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(f"[dim]{name}[/]", value)
    console.print(table)


def print_plan(console: Console, setup: Setup, splits: Sequence[SplitResult], attainment: float) -> None:
    """Print each split's goodput, best first, and the trials of the best split."""
    best = splits[0]
    table = FittingTable(SPLIT_COLUMNS)
    for one in splits:
        if one.best is None:
            attained = f"at most {_percent(max(p.attainment for p in one.probes))}"
            table.add_row(setup.named(one.pools), "-", "-", attained, _count(one))
            continue
        goodput = f"{'≥ ' if one.capped else '≈ ' if one.rough else ''}{one.goodput:.2f} requests/s"
        load, attained = f"{one.best.requests_per_s:.2f}", _percent(one.best.attainment)
        table.add_row(setup.named(one.pools), goodput, load, attained, _count(one))
    show(console, table)
    if best.best is None:
        console.print(f"No split meets the objectives of {_percent(attainment)} of the requests at any load.")
        return
    rows = [
        (f"{probe.requests_per_s:.2f}", f"{probe.goodput:.2f}", _percent(probe.attainment)) for probe in best.probes
    ]
    show(console, fitting(CURVE_COLUMNS, rows, title=setup.named(best.pools)))
    console.print(f"Best: [bold]{setup.named(best.pools)}[/], {best.goodput:.2f} requests/s within their objectives.")
    if any(one.capped for one in splits):
        console.print("≥: a higher load needs more requests than the trial had; give more with --requests.")


def simulation_document(setup: Setup, pools: Pools, result: SimulationResult) -> dict[str, Any]:
    """For `--json`: the setup, `figures` in seconds, bytes and shares, and the work of each worker.

    `tensor_parallel` has the GPUs of each pool's workers, chosen or given.
    """
    return {
        "setup": asdict(setup),
        "tensor_parallel": setup.degrees,
        "pools": asdict(pools),
        "figures": result.figures(),
        "workers": [{**asdict(worker), "role": worker.role.value} for worker in result.workers],
    }


def plan_document(setup: Setup, splits: Sequence[SplitResult]) -> dict[str, Any]:
    """For `--json`: every tried split, best first; `best` is null if no split attains the objectives."""
    documents = [
        {
            "pools": asdict(one.pools),
            "goodput": one.goodput,
            "capped": one.capped,
            "rough": one.rough,
            "best": _probe(one.best) if one.best else None,
            "probes": [_probe(probe) for probe in one.probes],
        }
        for one in splits
    ]
    best = asdict(splits[0].pools) if splits[0].best else None
    return {"setup": asdict(setup), "tensor_parallel": setup.degrees, "best": best, "splits": documents}


def _probe(probe: Probe) -> dict[str, Any]:
    return {
        "scale": probe.trial.scale,
        "requests": probe.trial.requests,
        "requests_per_s": probe.requests_per_s,
        "goodput": probe.goodput,
        "attainment": probe.attainment,
    }


def _failures(result: SimulationResult) -> list[str]:
    return sorted({one.error for one in result.outcomes if one.error not in ("", "Overloaded")})


def _count(split: SplitResult) -> str:
    return str(len(split.probes))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"
