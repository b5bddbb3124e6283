"""A distribution over output lengths: quantiles, mean, and the expected rest of a running sequence."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

MAX_TOKENS = 1 << 20
GROWTH = 1.08  # of a bin's width


def _edges() -> list[int]:
    edges = [1]
    while edges[-1] < MAX_TOKENS:
        edges.append(max(edges[-1] + 1, int(edges[-1] * GROWTH)))
    return edges


EDGES = _edges()
"""A bin holds the lengths up to its edge, from above the one before."""
NUM_BINS = len(EDGES)
_LENGTHS = np.array(EDGES, dtype=float)


def bin_of(tokens: int) -> int:
    """The bin of a length."""
    return min(bisect_left(EDGES, tokens), NUM_BINS - 1)


@dataclass(slots=True, eq=False)
class LengthDistribution:
    """Shares of the length bins (they sum to 1), cut off at `limit` tokens. `levels` calibrates quantiles.

    `levels` maps a stated share to the share of this distribution that covers it (see output_length.py); None is the
    identity.
    """

    shares: np.ndarray
    limit: int = MAX_TOKENS
    levels: np.ndarray | None = None
    _above: list[float] = field(default_factory=list)  # share of lengths in bin k and later
    _weighted: list[float] = field(default_factory=list)  # the same, each times its length

    def quantile(self, share: float) -> int:
        """The length that `share` of such requests stay within, in tokens."""
        if self.levels is not None:
            place = share * (len(self.levels) - 1)
            low = min(int(place), len(self.levels) - 2)
            share = float(self.levels[low] + (place - low) * (self.levels[low + 1] - self.levels[low]))
        return min(round(float(np.interp(share, np.cumsum(self.shares), _LENGTHS))), self.limit)

    @property
    def median(self) -> int:
        return self.quantile(0.5)

    def share_within(self, tokens: int) -> float:
        """How much of the distribution, uncalibrated, lies at or below `tokens` (the middle of its bin)."""
        index = bin_of(tokens)
        return float(self.shares[:index].sum() + self.shares[index] / 2)

    def remaining(self, emitted: int = 0) -> float:
        """Expected tokens to come after `emitted`: at least one, at most what `limit` leaves."""
        if not self._above and not emitted:  # the common case: once per request, when it arrives
            return max(1.0, min(float(self.shares @ _LENGTHS), self.limit))
        if not self._above:
            self._above = np.cumsum(self.shares[::-1])[::-1].tolist()
            self._weighted = np.cumsum((self.shares * _LENGTHS)[::-1])[::-1].tolist()
        index = bin_of(emitted + 1)
        above = self._above[index]
        # Beyond every length seen so far, old sequences tend to continue (Lindy): half as long again.
        expected = self._weighted[index] / above - emitted if above > 1e-6 else emitted / 2
        return max(1.0, min(expected, self.limit - emitted))


def point(tokens: int, limit: int = MAX_TOKENS) -> LengthDistribution:
    """All weight on one length."""
    shares = np.zeros(NUM_BINS)
    shares[bin_of(tokens)] = 1.0
    return LengthDistribution(shares, limit)
