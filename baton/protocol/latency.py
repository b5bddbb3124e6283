"""Latency of one request in the field's terms, from the moments its observer saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Latency:
    """Moments of one request, in seconds on one clock; None until they happen."""

    arrival_s: float
    routed_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    num_tokens: int = 0

    def on_tokens(self, count: int, now: float) -> None:
        """Account for `count` new output tokens."""
        if self.first_token_s is None:
            self.first_token_s = now
        self.last_token_s = now
        self.num_tokens += count

    @property
    def queue_s(self) -> float:
        """From arrival to the routing decision."""
        return 0.0 if self.routed_s is None else self.routed_s - self.arrival_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; undefined for fewer than two tokens."""
        if self.first_token_s is None or self.last_token_s is None or self.num_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.num_tokens - 1)

    @property
    def total_s(self) -> float:
        """From arrival to the last token so far."""
        return 0.0 if self.last_token_s is None else self.last_token_s - self.arrival_s


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, by linear interpolation; values must not be empty."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
