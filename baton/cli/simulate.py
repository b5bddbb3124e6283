"""`baton simulate` and `baton plan`: simulations of a cluster in virtual time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from baton.cli.admin_options import err, out
from baton.cli.progress import CountProgress
from baton.cli.report import print_settings
from baton.cli.simulate_options import (
    CLUSTER,
    OBJECTIVES,
    OUTPUT,
    WORKLOAD,
    ClusterOptions,
    FaultOptions,
    ObjectiveOptions,
    WorkloadOptions,
    grouped,
    option,
)

if TYPE_CHECKING:
    from baton.simulator.search import Search, SplitResult
    from baton.simulator.trace import TraceRequest


Plots = Annotated[Path | None, option(OUTPUT, help="Write PNG figures to this folder.", file_okay=False)]
Json = Annotated[bool, option(OUTPUT, "--json", help="Print one JSON document.")]


@grouped
def simulate(
    context: typer.Context,
    workload: WorkloadOptions,
    cluster: ClusterOptions,
    objectives: ObjectiveOptions,
    faults: FaultOptions,
    requests: Annotated[
        int | None,
        option(WORKLOAD, min=1, help="Replay only the first N requests, or generate N synthetic ones (default 1000)."),
    ] = None,
    scale: Annotated[float, option(WORKLOAD, min=1e-6, help="Multiplier of the arrival rate.")] = 1.0,
    rate: Annotated[float, option(WORKLOAD, min=1e-6, help="Synthetic requests per second.")] = 4.0,
    prefill: Annotated[int | None, option(CLUSTER, min=0, max=1024, help="Number of prefill workers.")] = None,
    decode: Annotated[int | None, option(CLUSTER, min=0, max=1024, help="Number of decode workers.")] = None,
    mixed: Annotated[
        int | None, option(CLUSTER, min=0, max=1024, help="Number of workers that serve whole requests.")
    ] = None,
    auto: Annotated[bool, option(CLUSTER, "--auto", help="Let the planner switch workers between the pools.")] = False,
    no_slo: Annotated[bool, option(OBJECTIVES, "--no-slo", help="Simulate requests without objectives.")] = False,
    plots: Plots = None,
    as_json: Json = False,
) -> None:
    """Replay a trace on a simulated cluster: the real router with simulated workers.

    The default pools have 4 prefill and 4 decode workers.

    Examples:

        baton simulate --requests 500

        baton simulate --prefill 6 --decode 2 --auto

        baton simulate --trace conversation.jsonl --model llama-3.1-70b --gpu h100 --prefill 8 --decode 8 --plots out

        baton simulate --faults --seed 1 --schedules 100
    """
    if faults.faults:
        _simulate_faults(context, workload.seed, faults, as_json)
    from baton.cli.simulate_report import print_simulation, simulation_document
    from baton.simulator.setup import Pools
    from baton.simulator.setup import workload as part

    _prepare(plots)
    trace = part(workload.requests(requests or 1000, rate), requests, scale)
    setup = replace(cluster.setup(trace, None if no_slo else objectives.slo, workload.seed), auto=auto)
    given = (prefill, decode, mixed) != (None, None, None)
    pools = Pools(prefill or 0, decode or 0, mixed or 0) if given else Pools(4, 4)
    setup.cluster(pools)
    print_settings(err, {**setup.described(pools), "workload": _described(trace)})
    with CountProgress(err, len(trace), "simulating") as progress:
        result = setup.simulate(pools, trace, lambda now, ended: progress.at(ended, f"{now:.0f} s simulated"))
    if as_json:
        print(json.dumps(simulation_document(setup, pools, result)))
    else:
        print_simulation(out, result, setup.slo)
    if plots is not None:
        from baton.simulator.plots import plot_simulation

        _print_written(plot_simulation(plots, result))


def _simulate_faults(context: typer.Context, seed: int, faults: FaultOptions, as_json: bool) -> NoReturn:
    from baton.cli.simulate_faults import refuse_other_options, simulate_faults

    refuse_other_options(context)
    raise typer.Exit(simulate_faults(out, err, seed, faults, as_json))


@grouped
def plan(
    workload: WorkloadOptions,
    cluster: ClusterOptions,
    objectives: ObjectiveOptions,
    gpus: Annotated[int, option(CLUSTER, min=1, max=4096, help="Number of accelerators to divide between the pools.")],
    requests: Annotated[int, option(WORKLOAD, min=2, help="Requests per trial, from the start of the trace.")] = 1500,
    attainment: Annotated[
        float, option(OBJECTIVES, min=0.01, max=1.0, help="Share of requests that must meet their objectives.")
    ] = 0.9,
    jobs: Annotated[int, option(OUTPUT, min=1, max=256, help="Number of parallel simulation processes.")] = 1,
    plots: Plots = None,
    as_json: Json = False,
) -> None:
    """Find the best split of accelerators into prefill and decode workers, or into mixed ones, for a workload.

    For each split a bisection over the arrival rate finds the highest load at which enough requests meet their
    objectives. The search tries a few splits roughly, then the splits around the best one finely.

    Examples:

        baton plan --gpus 32

        baton plan --trace conversation.jsonl --model llama-3.1-70b --gpu h100 --gpus 64 --jobs 8 --plots out
    """
    from baton.cli.simulate_report import plan_document, print_plan
    from baton.protocol.errors import ConfigError
    from baton.simulator.search import Search
    from baton.simulator.setup import Pools

    _prepare(plots)
    trace = workload.requests(requests, 4.0)[:requests]
    setup = cluster.setup(trace, objectives.slo, workload.seed)
    devices, search = setup.degrees["mixed"], Search(setup, trace, gpus, attainment)
    if not (search.mixed or search.splits()):
        raise ConfigError(f"One worker takes {devices} × {setup.gpu}: give at least --gpus {devices}.")
    every = Pools(1, 1, 1)
    setup.cluster(every)
    described = {**setup.described(every), "pools": f"{gpus} × {setup.gpu} to divide"}
    print_settings(err, {**described, "workload": _described(trace)})
    splits = _search(search, jobs)
    if as_json:
        print(json.dumps(plan_document(setup, splits)))
    else:
        print_plan(out, setup, splits, attainment)
    if plots is not None:
        from baton.simulator.plots import plot_plan

        _print_written(plot_plan(plots, splits, attainment))


def _print_written(paths: list[Path]) -> None:
    err.print("Wrote", *map(str, paths), soft_wrap=True, markup=False)


def _search(search: Search, jobs: int) -> list[SplitResult]:
    """Run the rounds of a search, with their trials in `jobs` processes; returns the splits, best first."""
    from concurrent.futures import ProcessPoolExecutor
    from contextlib import nullcontext
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(jobs, get_context("spawn")) if jobs > 1 else nullcontext()
    done = 0
    rounds = search.rounds()
    with pool as executor, CountProgress(err, None, "searching") as progress:
        trials = next(rounds)
        while True:
            probes = []
            for probe in (executor.map if executor else map)(search.run, trials):
                probes.append(probe)
                done += 1
                shown = f"{probe.requests_per_s:.2f} requests/s: {100 * probe.attainment:.0f} %"
                progress.at(done, f"trial {done}, {probe.trial.pools} at {shown}")
            try:
                trials = rounds.send(probes)
            except StopIteration as stop:
                return list(stop.value)


def _prepare(plots: Path | None) -> None:
    if plots is not None:
        from baton.simulator.plots import prepare_plots

        prepare_plots(plots)


def _described(trace: list[TraceRequest]) -> str:
    prompts = sum(one.prompt_tokens for one in trace) / len(trace)
    outputs = sum(one.output_tokens for one in trace) / len(trace)
    span_s = trace[-1].arrival_s
    rate = f"{len(trace) / span_s:.2f} per second" if span_s else "all at once"
    return f"{len(trace):,} requests, {rate}; on average {prompts:,.0f} prompt and {outputs:,.0f} output tokens"
