"""The declaration of a metric. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Prometheus' types."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Process(Enum):
    """The processes that serve a metric. Only what describes a process itself is served by both."""

    GATEWAY = "gateway"
    ROUTER = "router"
    BOTH = "gateway, router"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as a scrape shows it: a counter's name ends with "_total"."""

    name: str
    kind: Kind
    served: Process
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # Upper bounds of a histogram, without infinity

    @property
    def unit(self) -> str:
        """The unit, as the name has it; empty for a plain count."""
        words = self.name.removesuffix("_total").removesuffix("_perc").split("_")
        return words[-1] if words[-1] in ("seconds", "bytes", "tokens") else ""


def declared(namespace: Mapping[str, object]) -> tuple[Metric, ...]:
    """The metrics that a module declares, in order."""
    return tuple(value for value in namespace.values() if isinstance(value, Metric))


def one_two_five(low: float, high: float) -> tuple[float, ...]:
    """Bounds 1, 2, 5, 10, 20, … times `low`, up to `high`."""
    bounds, decade = list[float](), low
    while decade <= high:
        bounds += [bound for bound in (decade, 2 * decade, 5 * decade) if bound <= high]
        decade *= 10
    return tuple(bounds)


# Bounds in seconds; those that vLLM's histograms have are among them.
TOKEN_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
REQUEST_S = (
    *(0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0),
    *(50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TRANSFER_S = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SHORT_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
NUM_TOKENS = one_two_five(1, 1_000_000)
NUM_BYTES = tuple(float(1 << power) for power in range(12, 40, 2))
