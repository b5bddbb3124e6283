"""Random arrivals of an open loop, and the criterion for a sustained rate. Pure: the caller has clock and client."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from baton.protocol.latency import percentile

KEPT_SHARE = 0.95  # Share of the offered rate that must be achieved.
# Limit of the p99 lateness: of first tokens after the intended arrival, of others after their step.
LATE_S = 0.1


def poisson_arrivals(rate_per_s: float, window_s: float, seed: int) -> list[float]:
    """Arrival times, in seconds from the start, of a Poisson process with exactly `rate_per_s * window_s` arrivals.

    Given their number, the arrivals of a Poisson process are independent and uniform. A fixed number makes the offered
    rate exact, even in a short window.
    """
    rng = random.Random(seed)
    return sorted(rng.uniform(0.0, window_s) for _ in range(max(1, round(rate_per_s * window_s))))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The measurements of one open loop."""

    offered_per_s: float
    achieved_per_s: float
    ttft_s: list[float]  # Time from the intended arrival to the first token.
    late_s: list[float]  # Time from a worker's step to the arrival of its token.
    missing: int = 0  # Tokens that never arrived.

    @property
    def kept(self) -> bool:
        """Whether the rate was sustained: requests ended as fast as they arrived, and few tokens were late."""
        return (
            self.missing == 0
            and self.achieved_per_s >= KEPT_SHARE * self.offered_per_s
            and percentile(self.ttft_s, 0.99) <= LATE_S
            and percentile(self.late_s, 0.99) <= LATE_S
        )


def achieved_per_s(requests: int, window_s: float, last_end_s: float, stream_s: float) -> float:
    """Requests served per second when the last request of a window ended at `last_end_s`.

    `stream_s` is the duration of a stream. Lateness up to `LATE_S` counts as on time.
    """
    return requests / max(window_s, last_end_s - stream_s - LATE_S)


def highest_kept(peak: float, steps: int, keeps: Callable[[float], bool]) -> float:
    """The highest rate up to `peak` that is found to be sustained, or 0.0.

    Tries the peak, then `steps` bisections of the range from a 16th of it, on a logarithmic scale.
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
