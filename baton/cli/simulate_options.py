"""The options that `baton simulate` and `baton plan` share, in groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from baton.simulator.faults import Schedule
    from baton.simulator.setup import Setup
    from baton.simulator.simulation import Slo
    from baton.simulator.trace import TraceRequest

WORKLOAD, CLUSTER, OBJECTIVES, OUTPUT = "Workload", "Cluster", "Objectives", "Output"
FAULTS = "Faults"


def option(panel: str, *names: str, **settings: Any) -> Any:
    """An option in a panel of `--help`."""
    return typer.Option(*names, rich_help_panel=panel, **settings)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A Typer command with an option for each field of its dataclass parameters."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        kinds = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=kinds[one.name])
            for one in fields(groups[name])
        ]

    def run(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{one.name: values.pop(one.name) for one in fields(kind)})
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """The requests to simulate."""

    trace: Annotated[
        Path | None,
        option(
            WORKLOAD,
            help="Mooncake .jsonl or Azure .csv. Default: synthetic conversations.",
            dir_okay=False,
        ),
    ] = None
    prompt_tokens: Annotated[int, option(WORKLOAD, min=1, help="Median new tokens of a synthetic prompt.")] = 1000
    output_tokens: Annotated[int, option(WORKLOAD, min=1, help="Median output tokens of a synthetic request.")] = 200
    seed: Annotated[int, option(WORKLOAD, help="Seed of the random numbers; the same seed gives the same result.")] = 0

    def requests(self, count: int, rate_s: float) -> list[TraceRequest]:
        """The whole trace, or `count` synthetic requests at `rate_s` per second."""
        from baton.simulator.trace import Synthetic, read_trace

        if self.trace is not None:
            return read_trace(self.trace)
        made = Synthetic(count, rate_s, prompt_median=self.prompt_tokens, output_median=self.output_tokens)
        return made.generate(self.seed)


@dataclass(frozen=True, slots=True)
class ObjectiveOptions:
    """The latency objectives of every request."""

    slo_ttft: Annotated[
        float, option(OBJECTIVES, min=0.0, help="Objective for the first token in seconds, plus --slo-ttft-per-token.")
    ] = 2.0
    slo_ttft_per_token: Annotated[
        float, option(OBJECTIVES, min=0.0, help="Seconds added to the objective per prompt token.")
    ] = 0.25e-3
    slo_tpot: Annotated[
        float, option(OBJECTIVES, min=1e-6, help="Objective for the mean time per token after the first, in seconds.")
    ] = 0.05

    @property
    def slo(self) -> Slo:
        """The objectives for the simulator."""
        from baton.simulator.simulation import Slo

        return Slo(self.slo_ttft, self.slo_ttft_per_token, self.slo_tpot)


@dataclass(frozen=True, slots=True)
class FaultOptions:
    """Schedules of faults in place of a trace."""

    faults: Annotated[
        bool,
        option(
            FAULTS,
            "--faults",
            help="Play random schedules of faults instead of a trace, and check every token and page.",
        ),
    ] = False
    schedules: Annotated[int, option(FAULTS, min=1, help="Schedules to play: --seed and the seeds after it.")] = 1
    keep: Annotated[
        str | None, option(FAULTS, help="Numbers of the faults to keep, such as 0,3, or none. Default: all.")
    ] = None

    def kept(self, schedule: Schedule) -> Schedule:
        """The schedule with the faults that are kept. Raises `ConfigError`."""
        from baton.protocol.errors import ConfigError

        if self.keep is None:
            return schedule
        try:
            return schedule.keeping({int(number) for number in self.keep.split(",")} if self.keep != "none" else ())
        except ValueError:
            raise ConfigError(f"--keep {self.keep!r}: give numbers of faults, such as 0,3, or none.") from None


Degree = Annotated[
    int | None, option(CLUSTER, min=1, max=64, help="--tensor-parallel of this pool. Default: as of all.")
]


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """The cluster, except for the pool sizes."""

    model: Annotated[
        str,
        option(CLUSTER, help="Name of a known model, such as llama-3.1-8b, or path of a config.json."),
    ] = "llama-3.1-70b"
    gpu: Annotated[str, option(CLUSTER, help="Type of GPU: h200, h100, a100 or l40s.")] = "h100"
    tensor_parallel: Annotated[
        int | None,
        option(
            CLUSTER,
            min=1,
            max=64,
            help="GPUs that compute each step of a worker together. Default: the fewest that leave a third of memory "
            "for KV.",
        ),
    ] = None
    prefill_tensor_parallel: Degree = None
    decode_tensor_parallel: Degree = None
    mixed_tensor_parallel: Degree = None
    policy: Annotated[str, option(CLUSTER, help="Placement policy of the router.")] = "predicted_latency"
    serve_late: Annotated[
        bool,
        option(
            CLUSTER, "--serve-late", help="Serve requests that would miss their objectives, instead of refusing them."
        ),
    ] = False
    chunk_tokens: Annotated[int, option(CLUSTER, min=1, help="Prompt tokens per step.")] = 2048
    mixed_chunk_tokens: Annotated[int, option(CLUSTER, min=1, help="Prompt tokens per step that also decodes.")] = 512
    max_batch: Annotated[int, option(CLUSTER, min=1, help="Sequences per decode step.")] = 1024
    page_size: Annotated[
        int | None,
        option(
            CLUSTER,
            min=1,
            max=4096,
            help="Tokens per KV page, the unit of prefix reuse. Default: the block size of a trace that lists shared "
            "blocks (512 for Mooncake), else 64.",
        ),
    ] = None
    network: Annotated[float, option(CLUSTER, min=0.001, help="Network rate in GB/s per GPU and direction.")] = 45.0
    swap_memory: Annotated[
        float, option(CLUSTER, min=0.0, help="Host memory in GB per worker for pages of preempted sequences.")
    ] = 0.0

    def setup(self, trace: list[TraceRequest], slo: Slo | None, seed: int) -> Setup:
        """The simulator's setup for these options and a trace."""
        from baton.simulator.setup import Degrees, Setup, page_size_for

        return Setup(
            model=self.model,
            gpu=self.gpu,
            tensor_parallel=Degrees(
                self.prefill_tensor_parallel or self.tensor_parallel,
                self.decode_tensor_parallel or self.tensor_parallel,
                self.mixed_tensor_parallel or self.tensor_parallel,
            ),
            policy=self.policy,
            refuse_late=not self.serve_late,
            slo=slo,
            page_size=page_size_for(trace, self.page_size),
            chunk_tokens=self.chunk_tokens,
            mixed_chunk_tokens=self.mixed_chunk_tokens,
            max_batch=self.max_batch,
            network_gb_s=self.network,
            swap_memory_gb=self.swap_memory,
            seed=seed,
        )
