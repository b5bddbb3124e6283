"""`baton simulate` and `baton plan`: clusters that are not here, in virtual time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from baton.progress import CountProgress
from baton.report import print_settings

if TYPE_CHECKING:
    from simulator.search import Search, SplitResult
    from simulator.trace import TraceRequest

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def _option(panel: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, show_default=settings.pop("show_default", True), **settings)


WORKLOAD, CLUSTER, OBJECTIVES, OUTPUT = "Workload", "Cluster", "Objectives", "Output"
Trace = Annotated[
    Path | None,
    _option(WORKLOAD, help="Mooncake .jsonl or Azure .csv; default: made-up conversations.", dir_okay=False),
]
PromptTokens = Annotated[int, _option(WORKLOAD, min=1, help="Median new tokens of a made-up prompt.")]
OutputTokens = Annotated[int, _option(WORKLOAD, min=1, help="Median tokens of a made-up answer.")]
Model = Annotated[str, _option(CLUSTER, help="A known model, such as llama-3.1-8b, or the path of a config.json.")]
Gpu = Annotated[str, _option(CLUSTER, help="h200, h100, a100 or l40s.")]
GpusPerWorker = Annotated[
    int | None,
    _option(CLUSTER, min=1, max=64, help="Tensor parallelism; default: as few as leave a third of memory for KV."),
]
Policy = Annotated[str, _option(CLUSTER, help="Placement policy of the router.")]
ServeLate = Annotated[bool, _option(CLUSTER, "--serve-late", help="Do not refuse requests that would be late.")]
ChunkTokens = Annotated[int, _option(CLUSTER, min=1, help="Prompt tokens of a step.")]
MixedChunkTokens = Annotated[int, _option(CLUSTER, min=1, help="Prompt tokens of a step that also decodes.")]
MaxBatch = Annotated[int, _option(CLUSTER, min=1, help="Sequences that decode together.")]
PageSize = Annotated[
    int | None,
    _option(
        CLUSTER,
        min=1,
        max=4096,
        help="Tokens per KV page, the unit of prefix reuse. Default: the block size of a trace that says which "
        "blocks its prompts share (512 for Mooncake), so that what is shared there is shared here; else 64.",
    ),
]
Network = Annotated[float, _option(CLUSTER, min=0.001, help="GB/s into and out of a worker.")]
SloTtft = Annotated[float, _option(OBJECTIVES, min=0.0, help="Seconds to the first token, besides the next one.")]
SloTtftPerToken = Annotated[float, _option(OBJECTIVES, min=0.0, help="Seconds more for each prompt token.")]
SloTpot = Annotated[float, _option(OBJECTIVES, min=1e-6, help="Seconds per token after the first, on average.")]
Seed = Annotated[int, _option(WORKLOAD, help="The same seed gives the same result.")]
Plots = Annotated[Path | None, _option(OUTPUT, help="Write PNG figures to this folder.", file_okay=False)]
Json = Annotated[bool, _option(OUTPUT, "--json", help="One JSON document, for scripts.")]


def simulate(
    trace: Trace = None,
    requests: Annotated[
        int | None, _option(WORKLOAD, min=1, help="The first so many of the trace; how many to make up (1000).")
    ] = None,
    scale: Annotated[float, _option(WORKLOAD, min=1e-6, help="Requests come so many times as fast.")] = 1.0,
    rate: Annotated[float, _option(WORKLOAD, min=1e-6, help="Made-up requests per second.")] = 4.0,
    prompt_tokens: PromptTokens = 1000,
    output_tokens: OutputTokens = 200,
    seed: Seed = 0,
    model: Model = "llama-3.1-70b",
    gpu: Gpu = "h100",
    prefill: Annotated[int | None, _option(CLUSTER, min=0, max=1024, help="Prefill workers.")] = None,
    decode: Annotated[int | None, _option(CLUSTER, min=0, max=1024, help="Decode workers.")] = None,
    mixed: Annotated[int | None, _option(CLUSTER, min=0, max=1024, help="Workers that do both.")] = None,
    gpus_per_worker: GpusPerWorker = None,
    policy: Policy = "predicted_latency",
    serve_late: ServeLate = False,
    chunk_tokens: ChunkTokens = 8192,
    mixed_chunk_tokens: MixedChunkTokens = 512,
    max_batch: MaxBatch = 256,
    page_size: PageSize = None,
    network: Network = 45.0,
    slo_ttft: SloTtft = 2.0,
    slo_ttft_per_token: SloTtftPerToken = 0.25e-3,
    slo_tpot: SloTpot = 0.05,
    no_slo: Annotated[bool, _option(OBJECTIVES, "--no-slo", help="Requests state no objectives.")] = False,
    plots: Plots = None,
    as_json: Json = False,
) -> None:
    """Play a trace against a cluster that is not here: the real router over simulated workers.

    Without pool sizes there are 4 prefill and 4 decode workers.

    Examples:

        baton simulate --requests 500

        baton simulate --trace conversation.jsonl --model llama-3.1-70b --gpu h100 --prefill 8 --decode 8 --plots out
    """
    from baton.simulate_report import print_simulation, simulation_document
    from simulator.setup import Pools, Setup, page_size_for, workload
    from simulator.simulation import Slo

    _prepare(plots)
    played = workload(_read(trace, requests or 1000, rate, prompt_tokens, output_tokens, seed), requests, scale)
    setup = Setup(
        model=model,
        gpu=gpu,
        gpus_per_worker=gpus_per_worker,
        policy=policy,
        refuse_late=not serve_late,
        slo=None if no_slo else Slo(slo_ttft, slo_ttft_per_token, slo_tpot),
        page_size=page_size_for(played, page_size),
        chunk_tokens=chunk_tokens,
        mixed_chunk_tokens=mixed_chunk_tokens,
        max_batch=max_batch,
        network_gb_s=network,
        seed=seed,
    )
    given = (prefill, decode, mixed) != (None, None, None)
    pools = Pools(prefill or 0, decode or 0, mixed or 0) if given else Pools(4, 4)
    setup.cluster(pools)
    print_settings(err, {**setup.described(pools), "workload": _described(played)})
    with CountProgress(err, len(played), "simulating") as progress:
        result = setup.simulate(pools, played, lambda now, ended: progress.at(ended, f"{now:.0f} s simulated"))
    if as_json:
        print(json.dumps(simulation_document(setup, pools, result)))
    else:
        print_simulation(out, result, setup.slo)
    if plots is not None:
        from simulator.plots import plot_simulation

        err.print("Wrote", *(str(path) for path in plot_simulation(plots, result)), soft_wrap=True)


def plan(
    gpus: Annotated[
        int, _option(CLUSTER, min=1, max=4096, help="Accelerators to divide among pools.", show_default=False)
    ],
    trace: Trace = None,
    requests: Annotated[int, _option(WORKLOAD, min=2, help="The first so many are played in each trial.")] = 1500,
    prompt_tokens: PromptTokens = 1000,
    output_tokens: OutputTokens = 200,
    seed: Seed = 0,
    model: Model = "llama-3.1-70b",
    gpu: Gpu = "h100",
    gpus_per_worker: GpusPerWorker = None,
    policy: Policy = "predicted_latency",
    serve_late: ServeLate = False,
    chunk_tokens: ChunkTokens = 8192,
    mixed_chunk_tokens: MixedChunkTokens = 512,
    max_batch: MaxBatch = 256,
    page_size: PageSize = None,
    network: Network = 45.0,
    slo_ttft: SloTtft = 2.0,
    slo_ttft_per_token: SloTtftPerToken = 0.25e-3,
    slo_tpot: SloTpot = 0.05,
    attainment: Annotated[
        float, _option(OBJECTIVES, min=0.01, max=1.0, help="Share of requests that must meet their objectives.")
    ] = 0.9,
    jobs: Annotated[int, _option(OUTPUT, min=1, max=256, help="Processes that simulate side by side.")] = 1,
    plots: Plots = None,
    as_json: Json = False,
) -> None:
    """Find the best split of accelerators into prefill and decode workers, or into mixed ones, for a workload.

    For each split a bisection over the arrival rate finds the highest load at which enough requests meet their
    objectives. A few splits are tried roughly, those around the best one finely.

    Examples:

        baton plan --gpus 32

        baton plan --trace conversation.jsonl --model llama-3.1-70b --gpu h100 --gpus 64 --jobs 8 --plots out
    """
    from baton.simulate_report import plan_document, print_plan
    from cluster.errors import ConfigError
    from simulator.search import Search
    from simulator.setup import Pools, Setup, page_size_for
    from simulator.simulation import Slo

    _prepare(plots)
    played = _read(trace, requests, 4.0, prompt_tokens, output_tokens, seed)[:requests]
    setup = Setup(
        model=model,
        gpu=gpu,
        gpus_per_worker=gpus_per_worker,
        policy=policy,
        refuse_late=not serve_late,
        slo=Slo(slo_ttft, slo_ttft_per_token, slo_tpot),
        page_size=page_size_for(played, page_size),
        chunk_tokens=chunk_tokens,
        mixed_chunk_tokens=mixed_chunk_tokens,
        max_batch=max_batch,
        network_gb_s=network,
        seed=seed,
    )
    devices = setup.timer.devices
    if gpus < devices:
        raise ConfigError(f"One worker takes {devices} × {gpu}: give at least so many with --gpus.")
    search = Search(setup, played, gpus // devices, attainment)
    print_settings(
        err,
        {
            **setup.described(Pools(mixed=gpus // devices)),
            "pools": f"{gpus // devices} workers to divide",
            "workload": _described(played),
        },
    )
    splits = _search(search, jobs)
    if as_json:
        print(json.dumps(plan_document(setup, splits, devices)))
    else:
        print_plan(out, splits, attainment)
    if plots is not None:
        from simulator.plots import plot_plan

        err.print("Wrote", *(str(path) for path in plot_plan(plots, splits, attainment)), soft_wrap=True)


def _search(search: Search, jobs: int) -> list[SplitResult]:
    """Run the search's rounds, their trials in `jobs` processes."""
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
        from simulator.plots import prepare_plots

        prepare_plots(plots)


def _read(
    trace: Path | None, requests: int, rate: float, prompt_tokens: int, output_tokens: int, seed: int
) -> list[TraceRequest]:
    from simulator.trace import Synthetic, read_trace

    if trace is not None:
        return read_trace(trace)
    made = Synthetic(requests, rate, prompt_median=prompt_tokens, output_median=output_tokens)
    return made.generate(seed)


def _described(trace: list[TraceRequest]) -> str:
    prompts = sum(one.prompt_tokens for one in trace) / len(trace)
    outputs = sum(one.output_tokens for one in trace) / len(trace)
    span_s = trace[-1].arrival_s
    rate = f"{len(trace) / span_s:.2f} per second" if span_s else "all at once"
    return f"{len(trace):,} requests, {rate}; on average {prompts:,.0f} prompt and {outputs:,.0f} output tokens"
