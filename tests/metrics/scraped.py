"""A scrape, read with prometheus_client's parsers."""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx2
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.samples import Exemplar

from baton.metrics.metric import Kind, Metric, Process
from baton.metrics.table import METRICS

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
Labels = frozenset[tuple[str, str]]


@dataclass(eq=False)
class Scraped:
    """The samples of a scrape by name and labels, and the exemplars by the names of their buckets."""

    text: str
    openmetrics: bool = False
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)
    exemplars: dict[str, list[Exemplar]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for family in (parse_openmetrics if self.openmetrics else parse)(self.text):
            for sample in family.samples:
                self.samples[sample.name, frozenset(sample.labels.items())] = sample.value
                if sample.exemplar is not None:
                    self.exemplars.setdefault(sample.name, []).append(sample.exemplar)

    def value(self, name: str, **labels: str) -> float:
        """The value of a series."""
        return self.samples[name, frozenset(labels.items())]

    def total(self, name: str) -> float:
        """The sum over all series of a name."""
        return sum(value for (one, _), value in self.samples.items() if one == name)

    def labels(self, name: str) -> set[str]:
        """The names of the labels that a name's series have."""
        return {label for one, labels in self.samples if one == name for label, _ in labels}

    def check_declared(self, process: Process) -> None:
        """Every series of ours is declared for this process, with its labels."""
        declared = {name: metric for metric in METRICS for name in names(metric) if metric.served in (process, BOTH)}
        ours = [name for name, _ in self.samples if name.startswith(("vllm:", "smg_", "baton_"))]
        for name in ours:
            metric = declared[name]
            assert self.labels(name) - {"le"} == set(metric.labels), name


BOTH = Process.BOTH


def names(metric: Metric) -> list[str]:
    """The names of a metric's samples."""
    if metric.kind is Kind.HISTOGRAM:
        return [f"{metric.name}_{part}" for part in ("bucket", "count", "sum")]
    return [metric.name]


async def scrape(address: str, accept: str = "", token: str = "") -> Scraped:
    """What a process at "host:port" serves now."""
    headers = {"accept": accept} | ({"authorization": f"Bearer {token}"} if token else {})
    async with httpx2.AsyncClient() as client:
        response = await client.get(f"http://{address}/metrics", headers=headers)
    assert response.status_code == 200, response.text
    openmetrics = "openmetrics" in accept
    assert response.headers["content-type"].startswith(
        "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
    )
    return Scraped(response.text, openmetrics)
