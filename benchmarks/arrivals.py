"""Random arrivals of an open loop, and what it means that a rate is kept. Pure: the caller brings clock and client."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from baton.router.core.latency import percentile

KEPT_SHARE = 0.95  # of the offered rate
LATE_S = 0.1  # what 99 of 100 tokens arrive within, the first after the intended arrival, others after their step


def poisson_arrivals(rate_per_s: float, window_s: float, seed: int) -> list[float]:
    """Seconds from the start at which requests arrive: a Poisson process with exactly `rate_per_s * window_s` arrivals.

    Given their number, the arrivals of a Poisson process are independent and uniform; with the number fixed the offered
    rate is the one asked for, also in a short window.
    """
    rng = random.Random(seed)
    return sorted(rng.uniform(0.0, window_s) for _ in range(max(1, round(rate_per_s * window_s))))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the requests of one open loop."""

    offered_per_s: float
    achieved_per_s: float
    ttft_s: list[float]  # from the intended arrival to the first token
    late_s: list[float]  # from a worker's step to the arrival of its token
    missing: int = 0  # tokens that never came

    @property
    def kept(self) -> bool:
        """Whether the rate was served: requests ended as fast as they arrived, and few tokens came late."""
        return (
            self.missing == 0
            and self.achieved_per_s >= KEPT_SHARE * self.offered_per_s
            and percentile(self.ttft_s, 0.99) <= LATE_S
            and percentile(self.late_s, 0.99) <= LATE_S
        )


def achieved_per_s(requests: int, window_s: float, last_end_s: float, stream_s: float) -> float:
    """Requests served per second when those of a window ended at `last_end_s`, a stream itself taking `stream_s`.

    What is within the lateness that a kept rate may have counts as on time.
    """
    return requests / max(window_s, last_end_s - stream_s - LATE_S)


def highest_kept(peak: float, steps: int, keeps: Callable[[float], bool]) -> float:
    """The highest rate up to `peak` that is found to be kept, or 0.0.

    The peak itself, else by `steps` bisections of the range from a 16th of it, on a logarithmic scale.
    """
    if keeps(peak):
        return peak
    low, high, best = peak / 16, peak, 0.0
    for _ in range(steps):
        rate = sqrt(low * high)
        if keeps(rate):
            low = best = rate
        else:
            high = rate
    return best
