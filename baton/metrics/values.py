"""The values of metrics between scrapes, and one scrape of them. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from baton.metrics.metric import Metric

MAX_EXEMPLAR = 128  # Characters of an exemplar's names and values (OpenMetrics)


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One observation of a bucket, with the labels that find its request elsewhere."""

    labels: tuple[tuple[str, str], ...]
    value: float
    wall_s: float  # Unix time


@dataclass(slots=True, eq=False)
class Distribution:
    """The counts of a histogram's buckets. `bounds` are their upper bounds; the last bucket has none."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0
    exemplars: dict[int, Exemplar] = field(default_factory=dict)  # The latest of each bucket

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count an observation. It takes about 0.2 microseconds, so a gateway can call it for every token."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add_with(self, value: float, exemplar: Exemplar) -> None:
        """Count an observation that its request's names are kept of; longer names than OpenMetrics allows are not."""
        self.add(value)
        if sum(len(name) + len(text) for name, text in exemplar.labels) <= MAX_EXEMPLAR:
            self.exemplars[bisect_left(self.bounds, value)] = exemplar

    def copy(self) -> Distribution:
        """The counts so far."""
        copied = Distribution(self.bounds)
        copied.counts, copied.total, copied.exemplars = list(self.counts), self.total, dict(self.exemplars)
        return copied


Labels = tuple[str, ...]  # Values, in the order of the metric's labels


@dataclass(frozen=True, slots=True)
class Family:
    """All series of one metric in one scrape."""

    metric: Metric
    series: Sequence[tuple[Labels, float | Distribution]]


@dataclass(eq=False)
class Recorder:
    """Counters and histograms of one process, by metric and label values."""

    _counters: dict[Metric, Counter[Labels]] = field(default_factory=dict)
    _histograms: dict[Metric, dict[Labels, Distribution]] = field(default_factory=dict)

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Increase a counter."""
        self._counters.setdefault(metric, Counter())[labels] += by  # type: ignore[assignment]

    def observe(self, metric: Metric, value: float, *labels: str, exemplar: Exemplar | None = None) -> None:
        """Count an observation of a histogram."""
        if exemplar is None:
            self.distribution(metric, *labels).add(value)
        else:
            self.distribution(metric, *labels).add_with(value, exemplar)

    def distribution(self, metric: Metric, *labels: str) -> Distribution:
        """The counts of a histogram's series, for callers that observe often."""
        series = self._histograms.setdefault(metric, {})
        found = series.get(labels)
        if found is None:
            found = series[labels] = Distribution(metric.buckets)
        return found

    def begin(self, *metrics: Metric, labels: Iterable[Labels] = ((),)) -> None:
        """Show these series from the first scrape on, so that rates see their first increase."""
        for values in labels:
            for metric in metrics:
                if metric.buckets:
                    self.distribution(metric, *values)
                else:
                    self.count(metric, *values, by=0)

    def families(self) -> list[Family]:
        """All values so far."""
        counters = [Family(metric, list(series.items())) for metric, series in self._counters.items()]
        histograms = [
            Family(metric, [(labels, one.copy()) for labels, one in series.items()])
            for metric, series in self._histograms.items()
        ]
        return [*counters, *histograms]
