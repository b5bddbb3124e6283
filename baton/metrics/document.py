"""Writes docs/metrics.md: `python -m baton.metrics.document [--check]`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from baton.metrics.metric import Metric, Process
from baton.metrics.table import METRICS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
BEGIN, END = "<!-- tables: python -m baton.metrics.document -->", "<!-- end of tables -->"
TITLES = {
    Process.GATEWAY: "Of each gateway",
    Process.ROUTER: "Of the router",
    Process.BOTH: "Of each gateway and the router",
}


def tables() -> str:
    """A table of the metrics of each process."""
    return "\n".join(
        f"## {title}\n\n| name | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n"
        + "".join(_rows(metric for metric in METRICS if metric.served is process))
        for process, title in TITLES.items()
    )


def _rows(metrics: Iterable[Metric]) -> Iterable[str]:
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind.value} | {metric.unit} | {labels} | {metric.help} |\n"


def page(text: str) -> str:
    """The page with its tables brought up to date."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the page; with --check only compare, and return 1 if it is out of date."""
    text = PAGE.read_text()
    if arguments != ["--check"]:
        PAGE.write_text(page(text))
        return 0
    return int(page(text) != text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
