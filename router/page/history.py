"""The last minutes of the cluster, a point a second: what the page's plots show. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from baton.router.core.completion import Completion

POINTS = 300
WINDOW = 10  # Seconds over which a point's rates and percentiles are taken
FIRST_S, GROWTH, BUCKETS = 1e-4, 1.2, 80  # Of times: from 0.1 ms to 216 s, each bucket a fifth wider
NONE = np.zeros(BUCKETS, np.int32)
_LOG_GROWTH = math.log(GROWTH)


@dataclass(slots=True)
class Second:
    """What ended within one second; times are counted by bucket."""

    ended: int = 0
    failed: int = 0
    ttft: np.ndarray = field(default_factory=NONE.copy)
    tpot: np.ndarray = field(default_factory=NONE.copy)


@dataclass(frozen=True, slots=True)
class Point:
    """The cluster at one moment; times are None while no request has ended within the window."""

    tokens_per_s: float
    requests_per_s: float
    failed_per_s: float
    queued: int
    live: int
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None

    def row(self) -> list[float | int | None]:
        """The point as JSON: rates, counts, and times in milliseconds."""
        times = (self.ttft_p50_s, self.ttft_p99_s, self.tpot_p50_s, self.tpot_p99_s)
        return [
            round(self.tokens_per_s, 1),
            round(self.requests_per_s, 2),
            round(self.failed_per_s, 2),
            self.queued,
            self.live,
            *(None if one is None else round(1000 * one, 2) for one in times),
        ]


@dataclass(eq=False)
class History:
    """Counts requests as they end, in constant time, and closes a point each second."""

    points: deque[Point] = field(default_factory=lambda: deque(maxlen=POINTS))
    _seconds: deque[Second] = field(default_factory=lambda: deque([Second()], maxlen=WINDOW))

    def ended(self, completion: Completion) -> None:
        """A request has ended."""
        second = self._seconds[-1]
        second.ended += 1
        second.failed += completion.error is not None
        _count(second.ttft, completion.latency.ttft_s)
        _count(second.tpot, completion.latency.tpot_s)

    def tick(self, tokens_per_s: float, queued: int, live: int) -> None:
        """A second has passed."""
        seconds = self._seconds
        ttft, tpot = sum((one.ttft for one in seconds), NONE), sum((one.tpot for one in seconds), NONE)
        point = Point(
            tokens_per_s,
            sum(one.ended for one in seconds) / len(seconds),
            sum(one.failed for one in seconds) / len(seconds),
            queued,
            live,
            *(_quantile(ttft, share) for share in (0.5, 0.99)),
            *(_quantile(tpot, share) for share in (0.5, 0.99)),
        )
        self.points.append(point)
        seconds.append(Second())


def _count(buckets: np.ndarray, seconds: float | None) -> None:
    if seconds is not None:
        place = int(math.log(max(seconds, FIRST_S) / FIRST_S) / _LOG_GROWTH)
        buckets[min(place, BUCKETS - 1)] += 1


def _quantile(counts: np.ndarray, share: float) -> float | None:
    """Within 10 % of the value below which `share` of the counted times lie."""
    total = int(counts.sum())
    if not total:
        return None
    bucket = int(np.searchsorted(np.cumsum(counts), share * total))
    return float(FIRST_S * GROWTH ** (bucket + 0.5))
