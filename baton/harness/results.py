"""The JSON of a run, and `benchmarks/results`, which keeps the last full run of each benchmark."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from baton.harness.provenance import ROOT

FOLDER = ROOT / "benchmarks" / "results"
MEASURED, TRANSCRIBED = "measured", "transcribed"


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure's goal: at least, or with `at_most` at most, `value`."""

    value: float
    at_most: bool = False

    def met(self, figure: float) -> bool:
        """Whether a figure meets the goal."""
        return figure <= self.value if self.at_most else figure >= self.value

    def verdict(self, figure: float) -> str:
        """ "met" or "missed"."""
        return "met" if self.met(figure) else "missed"

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Result:
    """What one run measured, and what the figures may depend on."""

    name: str  # The benchmark, or the published variant of it.
    figures: dict[str, float]
    size: str = "full"  # "full", "quick" or "smoke".
    source: str = MEASURED  # Or "transcribed": copied from text, so the rest may be unknown.
    date: str = ""
    commit: str = "unknown"
    dirty: bool | None = None  # Whether tracked files differed from the commit.
    command: str = ""
    wall_s: float | None = None
    load_average: dict[str, float] = field(default_factory=dict)  # "before" and "after".
    machine: dict[str, Any] = field(default_factory=dict)
    setting: dict[str, Any] = field(default_factory=dict)
    goals: dict[str, Goal] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Result:
        """Raises `ValueError` when these are not figures of a run."""
        known = {one.name for one in fields(cls)}
        found = {name: value for name, value in values.items() if name in known}
        if not isinstance(found.get("figures"), dict) or "name" not in found:
            raise ValueError("it has no `name` or no `figures`")
        goals = {name: Goal(**goal) for name, goal in found.pop("goals", {}).items()}
        return cls(**found, goals=goals)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_result(path: Path) -> Result:
    """The result in a file; raises `ValueError` when it holds no result, `OSError` when it cannot be read."""
    try:
        return Result.from_json(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a result of a benchmark: {error}.") from None


def published(name: str, folder: Path = FOLDER) -> Result:
    """The last full run that was kept under this name; without figures if there is none."""
    path = folder / f"{name}.json"
    return read_result(path) if path.exists() else Result(name, {})


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a new file and rename it, so that a reader never sees half of it. A device or a pipe is written to."""
    if path.exists() and not path.is_file():
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        return
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    fresh.replace(path)
