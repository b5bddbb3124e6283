"""What Grafana asks Prometheus: a board's queries with their variables filled in, and the metrics that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from baton.metrics.metric import Kind
from baton.metrics.table import METRICS

OURS = re.compile(r"\b(?:baton_|vllm:|smg_)[a-zA-Z0-9_:]+")
BUILT_IN = {"__rate_interval": "30s", "__interval": "5s", "__range": "5m", "__range_s": "300", "__interval_ms": "5000"}


@dataclass(frozen=True, slots=True)
class BoardQuery:
    """A query of a panel of a board."""

    panel: str
    expression: str  # With variables filled in


def board_queries(board: Mapping[str, Any], values: Mapping[str, str]) -> list[BoardQuery]:
    """The queries of a board's panels; `values`: those of its variables, without those built into Grafana."""
    return [
        BoardQuery(panel["title"], filled(target["expr"], {**BUILT_IN, **values}))
        for panel in panels(board["panels"])
        for target in panel.get("targets", ())
        if target.get("expr")
    ]


def panels(given: list[Any]) -> Iterator[Any]:
    """Panels and those inside of collapsed rows."""
    for panel in given:
        yield panel
        yield from panels(panel.get("panels", []))


def filled(expression: str, values: Mapping[str, str]) -> str:
    """An expression with `$name`, `${name}`, `${name:format}` and `[[name]]` replaced; raises `KeyError`."""
    pattern = r"\$\{(\w+)(?::\w+)?\}|\$(\w+)|\[\[(\w+)\]\]"
    return re.sub(pattern, lambda found: values[next(name for name in found.groups() if name)], expression)


def undeclared(expression: str) -> set[str]:
    """The metrics with our prefixes that an expression names and no table declares."""
    known = {metric.name for metric in METRICS}
    histograms = [metric.name for metric in METRICS if metric.kind is Kind.HISTOGRAM]
    known |= {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    return set(OURS.findall(expression)) - known
