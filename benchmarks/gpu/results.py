"""The result of a part, its JSON, and the rows of the table. Pure except for reading and writing the file."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from baton.harness.results import Goal

SENTENCE_CHARS = 160


@dataclass(slots=True)
class Failure:
    """A step that failed, the figures it should have given, and the reason in one sentence."""

    step: str
    figures: list[str]
    sentence: str
    traceback: str = ""

    @classmethod
    def of(cls, step: str, figures: list[str], error: BaseException) -> Failure:
        """The failure of a step by an exception."""
        return cls(step, figures, one_sentence(error), "".join(traceback.format_exception(error)))


@dataclass(slots=True)
class PartResult:
    """A part's figures; written after every step, so that no figure is lost with the process."""

    figures: dict[str, float] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # Figure → reason.
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # The device and its software.
    details: dict[str, Any] = field(default_factory=dict)  # For the JSON file only: times of stages.
    doing: str = "starting"  # The current step; empty when the part has finished.
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PartResult:
        return cls(**{**values, "failures": [Failure(**failure) for failure in values["failures"]]})

    def why_missing(self, figure: str) -> str:
        """The text that the table shows in place of a missing figure."""
        if figure in self.skipped:
            return f"skipped: {self.skipped[figure]}"
        named = [failure for failure in self.failures if figure in failure.figures]
        for failure in (*named, *self.failures):
            return f"failed: {failure.sentence}"
        return "failed: its step gave no figure"


def one_sentence(error: BaseException) -> str:
    """An error in one line, short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= SENTENCE_CHARS else f"{text[: SENTENCE_CHARS - 1]}…"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when the file is missing or invalid."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file atomically, so that a reader never sees half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(values, indent=2) + "\n")
    fresh.replace(path)


def rows(result: PartResult, expected: Iterable[str], goals: dict[str, Goal]) -> list[tuple[str, str, str, str]]:
    """(figure, value, goal, verdict) of every expected figure, then of others, then failures without a figure."""
    found = []
    for name in dict.fromkeys((*expected, *result.figures)):
        goal = goals.get(name)
        if name in result.figures:
            value = result.figures[name]
            verdict = "" if goal is None else "met" if goal.met(value) else "missed"
            found.append((name, f"{value:.4g}", str(goal or ""), verdict))
        else:
            found.append((name, result.why_missing(name), str(goal or ""), ""))
    found += [
        (failure.step, f"failed: {failure.sentence}", "", "") for failure in result.failures if not failure.figures
    ]
    return found
