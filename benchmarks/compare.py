"""Compares two runs of one benchmark, figure by figure, the worst change first.

    python -m benchmarks.compare before.json after.json

`better` says how many times better the new figure is: 0.5 is half as good, whether high or low is better. Neutral
figures come last. A different machine or setting is reported above the table, because ratios then mean little.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from baton.harness.results import Result, read_result
from benchmarks.catalog import BY_NAME

LOADED = 0.5  # Load average per core above which other processes disturbed the measurement.


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both runs."""

    figure: str
    old: float
    new: float
    direction: str | None  # "higher" or "lower" is better; None: neither

    @property
    def ratio(self) -> float | None:
        """New over old; None unless both are positive."""
        return self.new / self.old if self.old > 0 and self.new > 0 else None

    @property
    def better(self) -> float | None:
        """How many times better; 0 or infinity when there is no ratio; None for a neutral figure."""
        if self.direction is None:
            return None
        if self.old == self.new:
            return 1.0
        high = self.direction == "higher"
        ratio = self.ratio
        if ratio is not None:
            return ratio if high else 1 / ratio
        return float("inf") if (self.new > self.old) == high else 0.0


def changes(old: Result, new: Result) -> list[Change]:
    """The figures of both runs, the worst change first, neutral figures last."""
    found = [
        Change(figure, value, new.figures[figure], direction(figure, new))
        for figure, value in old.figures.items()
        if figure in new.figures
    ]
    return sorted(found, key=lambda one: (one.better is None, one.better or 0.0, one.figure))


def direction(figure: str, result: Result) -> str | None:
    """Which way is better: from the figure's goal, else from the catalogue."""
    if figure in result.goals:
        return "lower" if result.goals[figure].at_most else "higher"
    one = BY_NAME.get(result.name)
    return None if one is None else one.direction(figure)


def warnings(old: Result, new: Result) -> list[str]:
    """Reasons against comparing the two runs, a sentence each."""
    said = []
    if old.name != new.name:
        said.append(f"These are different benchmarks: {old.name} and {new.name}.")
    if old.size != new.size:
        said.append(f"One is a {old.size} run, the other a {new.size} run.")
    for what, one, other in (("machine", old.machine, new.machine), ("setting", old.setting, new.setting)):
        differing = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
        if differing:
            pairs = ", ".join(f"{key} {_said(one, key)} and {_said(other, key)}" for key in differing)
            said.append(f"The {what} differs: {pairs}.")
    for which, result in (("old", old), ("new", new)):
        load, cores = result.load_average.get("before"), result.machine.get("cores")
        if load is not None and cores is not None and load > LOADED * cores:
            said.append(f"The {which} run began at a load average of {load:g} on {cores} cores.")
    for which, figures, others in (("old", old.figures, new.figures), ("new", new.figures, old.figures)):
        missing = [figure for figure in figures if figure not in others]
        if missing:
            said.append(f"Only the {which} run has {', '.join(missing)}.")
    return said


def _said(facts: dict[str, Any], key: str) -> str:
    return str(facts[key]) if key in facts else "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 when both files can be read and share a figure, else 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path, help="JSON of a benchmark (--json), or of benchmarks/results")
    parser.add_argument("new", type=Path)
    options = parser.parse_args(arguments)
    try:
        old, new = read_result(options.old), read_result(options.new)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    console = Console()
    if not changes(old, new):
        print(
            f"Nothing to compare: {options.old} ({old.name}) and {options.new} ({new.name}) share no figure.",
            file=sys.stderr,
        )
        return 2
    for sentence in warnings(old, new):
        console.print(sentence, style="bold", markup=False)
    table = Table("figure", "old", "new", "new / old", "better", title=f"benchmarks.{new.name}", title_justify="left")
    for one in changes(old, new):
        ratio = "" if one.ratio is None else f"{one.ratio:.3f}"
        better = "" if one.better is None else f"{one.better:.3f}×"
        table.add_row(one.figure, f"{one.old:.4g}", f"{one.new:.4g}", ratio, better)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
