"""What benchmarks and reliability runs share: flags, a progress bar, a readable table and the JSON file."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from baton.harness import deadline, provenance
from baton.harness.results import FOLDER, Goal, Result, write_json

__all__ = ["Goal", "Options", "Report", "arguments", "median_ratio", "progress"]
T = TypeVar("T")
FULL_S, QUICK_S, SMOKE_S = 900.0, 300.0, 150.0  # deadlines; a busy machine takes several times as long as a quiet one


class Options(argparse.Namespace):
    """The flags of a run, and the state of the machine at its start."""

    json: Path | None
    keep_as: str | None  # of --publish: "" is the run's own name
    size: str
    seed: int
    deadline_s: float | None
    command: str
    started_s: float
    load_before: float

    @property
    def quick(self) -> bool:
        """Whether this is not a full run."""
        return self.size != "full"

    def pick(self, full: T, quick: T, smoke: T) -> T:
        """The value for the size of this run."""
        return {"full": full, "quick": quick, "smoke": smoke}[self.size]


class Arguments(argparse.ArgumentParser):
    """A parser with the flags of every run; parsing them starts the clock and the deadline."""

    full_s = FULL_S  # the deadline of a full run; time that it was asked to measure comes on top

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Options:  # type: ignore[override]
        """The flags; exits with a message for --publish of a run that is not full."""
        options: Options = super().parse_args(args, Options())
        if options.keep_as is not None and options.quick:
            self.error("--publish keeps full runs only: leave --quick and --smoke out")
        given = list(sys.argv[1:] if args is None else args)
        options.command = command_line(self.prog, given)
        options.started_s, options.load_before = time.monotonic(), provenance.load_average()
        limit_s = options.deadline_s
        if limit_s is None:  # The time that the arguments ask to measure is added to the default.
            asked_s = 60 * getattr(options, "minutes", 0.0) + getattr(options, "seconds", 0.0)
            limit_s = options.pick(self.full_s + asked_s, QUICK_S, SMOKE_S)
        deadline.enforce(limit_s, self.prog)
        return options


def arguments(doc: str | None, example: str, full_s: float = FULL_S) -> Arguments:
    """A parser for the module that `example` names, a command line such as `python -m benchmarks.router --quick`."""
    named = re.search(r"-m ([\w.]+)", example)
    assert named is not None, example
    parser = Arguments(
        prog=named[1],
        usage=f"python -m {named[1]} [options]",
        description=doc,
        epilog=f"example:  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.full_s = full_s
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and setting as JSON")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="less precise, within 50 s")
    size.add_argument("--smoke", dest="size", action="store_const", const="smoke", help="everything once, in seconds")
    parser.set_defaults(size="full")
    parser.add_argument("--seed", type=int, default=0, help="seed of random numbers")
    parser.add_argument("--deadline-s", type=float, metavar="SECONDS", help="end with an error after this time")
    parser.add_argument(
        "--publish",
        dest="keep_as",
        nargs="?",
        const="",
        metavar="NAME",
        help="keep a full run in benchmarks/results/NAME.json, the source of the tables in the documentation",
    )
    return parser


def command_line(module: str, given: Sequence[str]) -> str:
    """The command that reproduces these figures: without flags for outputs, and files without their folders."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--json")
    own.add_argument("--publish", nargs="?")
    own.add_argument("--deadline-s")
    _, rest = own.parse_known_args(list(given))
    words = [Path(word).name if "/" in word else word for word in rest]
    return shlex.join(["python", "-m", module, *words])


@dataclass
class Report:
    """Named figures, their goals, and the setting of the measurement."""

    name: str
    goals: dict[str, Goal] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    setting: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)  # For the JSON file only.

    def publish(self, options: Options) -> None:
        """Print the table, write the JSON file of `--json`, and keep the run if `--publish` was given.

        Raises `ValueError` when a figure is not a finite number.
        """
        wrong = [name for name, value in self.figures.items() if not math.isfinite(value)]
        if wrong:
            raise ValueError(f"{self.name} measured no finite number for {', '.join(wrong)}.")
        result = self._result(options)
        self._print(result)
        if options.json is not None:
            write_json(options.json, {**result.to_json(), "details": self.details})
        if options.keep_as is not None:
            name = options.keep_as or self.name
            FOLDER.mkdir(exist_ok=True)
            write_json(FOLDER / f"{name}.json", replace(result, name=name).to_json())
            print(f"Kept as benchmarks/results/{name}.json; `python -m benchmarks.tables` updates the tables.")

    def _result(self, options: Options) -> Result:
        commit, dirty = provenance.commit()
        return Result(
            name=self.name,
            figures={name: float(f"{value:.6g}") for name, value in self.figures.items()},
            size=options.size,
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
            commit=commit,
            dirty=dirty,
            command=options.command,
            wall_s=round(time.monotonic() - options.started_s, 1),
            load_average={"before": options.load_before, "after": provenance.load_average()},
            machine=dict(provenance.machine()),
            setting=self.setting,
            goals={name: goal for name, goal in self.goals.items() if name in self.figures},
        )

    def _print(self, result: Result) -> None:
        table = Table("figure", "value", "goal", "", title=self.name, title_justify="left")
        for name, value in self.figures.items():
            goal = self.goals.get(name)
            table.add_row(name, f"{value:.4g}", str(goal or ""), "" if goal is None else goal.verdict(value))
        console = Console()
        console.print(table)
        facts = {**result.machine, "size": result.size, "wall_s": result.wall_s, **self.setting}
        console.print(", ".join(f"{key}={value}" for key, value in facts.items()), style="dim", markup=False)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal. It yields a function to call with each step's name when the step begins."""
    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not Console(stderr=True).is_terminal) as bar:
        task = bar.add_task("starting", total=total)
        begun = 0

        def step(name: str) -> None:
            nonlocal begun
            bar.update(task, description=name, completed=begun)
            begun += 1

        yield step
        bar.update(task, completed=total)


def median_ratio(pairs: list[tuple[float, float]]) -> float:
    """The median of a/b over alternating measurements, so that drift affects both sides alike."""
    return median(left / right for left, right in pairs)
