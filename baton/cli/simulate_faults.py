"""`baton simulate --faults`: schedules of faults on virtual clusters, until one breaks a promise."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

import typer
from rich.console import Console

from baton.cli.progress import CountProgress
from baton.cli.report import print_settings
from baton.cli.simulate_options import FaultOptions
from baton.protocol.errors import ConfigError
from baton.simulator.fault_run import FaultResult, play
from baton.simulator.faults import Schedule, draw, shrink

WITH_FAULTS = {"faults", "schedules", "keep", "seed", "as_json"}  # the options that say something about them


def refuse_other_options(context: typer.Context) -> None:
    """Raises `ConfigError` for an option that describes a trace or its cluster."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in WITH_FAULTS:
            raise ConfigError(
                f"{parameter.opts[0]} says nothing about schedules of faults: they go with --seed, --schedules, "
                "--keep and --json only."
            )


@dataclass(eq=False)
class FaultSummary:
    """What the schedules have shown."""

    schedules: int = 0
    tokens: int = 0
    requests: int = 0
    met: int = 0  # requests that met the objectives
    simulated_s: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    pauses_s: list[float] = field(default_factory=list)
    failed: FaultResult | None = None  # of the first schedule that failed

    def add(self, result: FaultResult) -> None:
        """Another schedule was played."""
        self.schedules += 1
        self.tokens += result.tokens
        self.requests += len(result.schedule.arrivals)
        self.met += result.met
        self.simulated_s += result.simulated_s
        self.errors.update(result.errors)
        self.pauses_s += result.longest_pauses_s
        self.failed = result if result.failure else None

    def pause_s(self, share: float) -> float:
        """A quantile of each stream's longest pause."""
        ordered = sorted(self.pauses_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0

    def document(self) -> dict[str, object]:
        """The figures, for scripts."""
        return {
            "schedules": self.schedules,
            "requests": self.requests,
            "tokens": self.tokens,
            "simulated_s": self.simulated_s,
            "ended_with_errors": dict(sorted(self.errors.items())),
            "slo_attainment": self.met / max(self.requests, 1),
            "longest_pause_s_p50": self.pause_s(0.5),
            "longest_pause_s_p99": self.pause_s(0.99),
            "failure": self.failed.failure if self.failed else "",
        }


def simulate_faults(out: Console, err: Console, seed: int, options: FaultOptions, as_json: bool) -> int:
    """Play schedules from `seed` on, up to the first that fails, which is shrunk. Returns the exit code."""
    summary = FaultSummary()
    if options.schedules == 1:
        err.print(str(options.kept(draw(seed))), markup=False, soft_wrap=True)
    with CountProgress(err, options.schedules, "schedules") as progress:
        for number in range(options.schedules):
            summary.add(play(options.kept(draw(seed + number))))
            if summary.failed:
                break
            progress.at(number + 1, f"{summary.tokens:,} tokens, none wrong")
    if as_json:
        print(json.dumps(summary.document()))
    else:
        _print(err if summary.failed else out, summary)
    if summary.failed is None:
        return 0
    err.print("shrinking: faults are dropped while the schedule still fails")
    smallest = shrink(summary.failed.schedule, lambda schedule: bool(play(schedule).failure))
    err.print(play(smallest).failure, markup=False, soft_wrap=True)
    err.print(str(smallest), markup=False, soft_wrap=True)
    err.print(f"replay it: {replay_command(smallest)}", markup=False, soft_wrap=True)
    return 1


def replay_command(schedule: Schedule) -> str:
    """The command that plays this schedule alone."""
    kept = ",".join(str(fault.number) for fault in schedule.faults) or "none"
    return f"baton simulate --faults --seed {schedule.seed} --keep {kept}"


def _print(console: Console, summary: FaultSummary) -> None:
    errors = ", ".join(f"{count} {name}" for name, count in sorted(summary.errors.items()))
    print_settings(
        console,
        {
            "schedules": f"{summary.schedules:,}, {summary.simulated_s:,.0f} s simulated",
            "requests": f"{summary.requests:,}, {summary.tokens:,} tokens",
            "ended with errors": errors or "none",
            "objectives met": f"{100 * summary.met / max(summary.requests, 1):.1f} %",
            "longest pause": f"{summary.pause_s(0.5):.3f} s of the median stream, {summary.pause_s(0.99):.2f} s at p99",
            "promises broken": summary.failed.failure if summary.failed else "none",
        },
    )
