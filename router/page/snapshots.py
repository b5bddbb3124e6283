"""What the page is sent: the whole state at first, then what has changed since the snapshot before. Pure.

A row has a worker's figures in the order of `COLUMNS`; only rows that differ are sent again, so figures are rounded to
what the page shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

COLUMNS = (
    *("role", "state", "host", "device", "pages_total", "pages_in_use", "pages_cached", "peak_pages"),
    *("running", "waiting", "swapped", "prompt_tokens", "context_tokens", "busy_s", "tpot_ms", "silent_s"),
    "rank_pids",
)
SILENT_S = 2  # Without a report for so long; a younger one is shown as 0
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """The cluster at one moment. `cluster`, `gateways` and `operations` are JSON."""

    cluster: dict[str, Any]
    gateways: list[dict[str, Any]]
    workers: Mapping[str, Row]
    operations: list[dict[str, Any]]
    refusals: list[dict[str, Any]]
    requests: list[dict[str, Any]]
    every: int  # One of so many requests has a track
    tracks: list[list[Any]]  # That have changed
    points: list[list[Any]]  # Of the history, all


@dataclass(eq=False)
class Snapshots:
    """The latest facts, whole and as their difference from the ones before; each has its number."""

    number: int = 0
    facts: Facts | None = None
    changes: dict[str, Any] = field(default_factory=dict)

    def take(self, facts: Facts) -> None:
        """Make the next snapshot."""
        before, self.facts = self.facts, facts
        self.number += 1
        self.changes = self._shared(facts, facts.tracks, facts.points[-1:])
        if before is None:
            return
        old = before.workers
        self.changes["workers"] = {name: row for name, row in facts.workers.items() if old.get(name) != row}
        self.changes["gone"] = [name for name in old if name not in facts.workers]
        for name in ("operations", "refusals"):
            if getattr(facts, name) != getattr(before, name):
                self.changes[name] = getattr(facts, name)

    def whole(self, tracks: list[list[Any]]) -> dict[str, Any]:
        """The latest snapshot, with all tracks, for a client that has none, or missed one."""
        facts = self.facts
        if facts is None:
            return {}
        return {
            **self._shared(facts, tracks, facts.points),
            "whole": True,
            "columns": COLUMNS,
            "workers": facts.workers,
            "operations": facts.operations,
            "refusals": facts.refusals,
        }

    def _shared(self, facts: Facts, tracks: list[list[Any]], points: list[list[Any]]) -> dict[str, Any]:
        return {
            "number": self.number,
            "cluster": facts.cluster,
            "gateways": facts.gateways,
            "requests": facts.requests,
            "every": facts.every,
            "tracks": tracks,
            "points": points,
        }


def silence(seconds: float) -> int:
    """Whole seconds since a worker's last message; 0 while that is normal."""
    return int(seconds) if seconds >= SILENT_S else 0


def oldest_age_s(arrivals_s: Iterable[float], now: float) -> float:
    """The age of the request that has waited longest; 0 without one."""
    return max(0.0, now - min(arrivals_s, default=now))
