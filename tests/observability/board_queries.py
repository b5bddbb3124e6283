"""Asks a Prometheus that scraped a live cluster what boards of Grafana ask.

`python -m tests.observability.board_queries BOARD.json …` prints a table of the panels of each board: how many of their
queries have data, and the metrics of those without.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.observability.load import scraped_cluster
from tests.observability.prometheus import Prometheus
from tests.observability.promql import BoardQuery, board_queries, filled

METRIC = re.compile(r"[a-zA-Z_][\w:]*(?=\{|\[)")
LABEL_VALUES = re.compile(r"label_values\((?:(.+),\s*)?(\w+)\)")


@dataclass(frozen=True, slots=True)
class Answers:
    """The queries of a board with data and without."""

    title: str
    with_data: tuple[BoardQuery, ...]
    without: tuple[BoardQuery, ...]

    def rows(self) -> list[str]:
        """A Markdown table: a row for each panel."""
        lines = [
            f"**{self.title}**",
            "",
            "| panel | queries with data | without: their metrics |",
            "| --- | --- | --- |",
        ]
        for panel in dict.fromkeys(query.panel for query in (*self.with_data, *self.without)):
            found = sum(query.panel == panel for query in self.with_data)
            empty = [query for query in self.without if query.panel == panel]
            names = sorted({name for query in empty for name in METRIC.findall(query.expression)})
            lines.append(f"| {panel} | {found} of {found + len(empty)} | {', '.join(f'`{name}`' for name in names)} |")
        return lines


def ask(board: Mapping[str, Any], scraper: Prometheus) -> Answers:
    """Run all queries of a board, with the values that its variables have in Grafana when it is opened."""
    queries = board_queries(board, variables(board, scraper))
    found = [has_data(scraper.query(query.expression)) for query in queries]
    with_data = tuple(query for query, data in zip(queries, found, strict=True) if data)
    without = tuple(query for query, data in zip(queries, found, strict=True) if not data)
    return Answers(board["title"], with_data, without)


def has_data(series: list[Any]) -> bool:
    """Whether a result has a number; a percentile of no observations is none."""
    return any(not math.isnan(float(one["value"][1])) for one in series)


def variables(board: Mapping[str, Any], scraper: Prometheus) -> dict[str, str]:
    """The values of a board's variables: those that Prometheus has, all that may be chosen together, or the default."""
    values: dict[str, str] = {}
    for variable in board["templating"]["list"]:
        name, query = variable["name"], variable.get("query", "")
        text = query.get("query", "") if isinstance(query, dict) else query
        found = LABEL_VALUES.fullmatch(text.strip())
        if found is None:
            values[name] = str(variable.get("current", {}).get("value", ""))
            continue
        metric = {"match[]": filled(found[1], {"__rate_interval": "30s", **values})} if found[1] else {}
        known = scraper.get(f"label/{found[2]}/values", **metric)
        values[name] = "|".join(map(_escaped, known)) if variable.get("multi") else (known or [""])[0]
    return values


def _escaped(value: str) -> str:
    """A value as a regular expression inside of PromQL's quotes."""
    return re.escape(value).replace("\\", "\\\\")


def main(paths: list[str]) -> int:
    """Print the table of each board; 1 if one has no data at all."""
    with tempfile.TemporaryDirectory() as folder, scraped_cluster(Path(folder)) as (_, scraper):
        answers = [ask(json.loads(Path(path).read_text()), scraper) for path in paths]
    for answer in answers:
        print("\n".join(answer.rows()), end="\n\n")
    return int(not all(answer.with_data for answer in answers))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
