"""What every benchmark shares: its flags, a progress bar, a readable table and the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure's goal: at least (or at most) `value`."""

    value: float
    at_most: bool = False

    def met(self, figure: float) -> bool:
        return figure <= self.value if self.at_most else figure >= self.value

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.value:g}"


@dataclass
class Report:
    """Named figures, their goals, and the setting they were measured in."""

    name: str
    goals: dict[str, Goal] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    setting: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)  # for the JSON file only

    def publish(self, path: Path | None) -> None:
        """Print the table and, when a path is given, write the JSON."""
        table = Table("figure", "value", "goal", "", title=f"benchmarks.{self.name}", title_justify="left")
        for name, value in self.figures.items():
            goal = self.goals.get(name)
            verdict = "" if goal is None else "met" if goal.met(value) else "missed"
            table.add_row(name, f"{value:.4g}", str(goal or ""), verdict)
        setting = {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
        self.setting = {**setting, **self.setting}
        console = Console()
        console.print(table)
        console.print(", ".join(f"{key}={value}" for key, value in self.setting.items()), style="dim")
        if path is not None:
            path.write_text(
                json.dumps({"figures": self.figures, "setting": self.setting, **self.details}, indent=2) + "\n"
            )


def arguments(doc: str | None, example: str) -> argparse.ArgumentParser:
    """A parser with the flags every benchmark has."""
    parser = argparse.ArgumentParser(
        description=doc, epilog=f"example:  {example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and setting as JSON")
    parser.add_argument("--quick", action="store_true", help="rougher figures within 50 s")
    parser.add_argument("--seed", type=int, default=0)
    return parser


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal; call what is yielded with the name of each step as it begins."""
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
    """The median of a/b over measurements taken in turn: what drifts hits both sides alike."""
    return median(left / right for left, right in pairs)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
