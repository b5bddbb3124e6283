"""Synthetic traces whose mix of requests changes from phase to phase."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from baton.simulator.trace import TraceRequest

SPREAD = 0.5  # standard deviation of a length's logarithm


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request: its rate and its median lengths."""

    rate_per_s: float
    prompt_tokens: int
    output_tokens: int


LONG_PROMPTS = Kind(12.0, 12_000, 50)
LONG_ANSWERS = Kind(15.0, 3_000, 1_000)


def phases(kinds: Sequence[Sequence[Kind]], phase_s: float, load: float, seed: int) -> list[TraceRequest]:
    """The requests of consecutive phases: Poisson arrivals of each kind in a phase, at `load` times its rate."""
    rng = random.Random(seed)
    requests: list[TraceRequest] = []
    for number, present in enumerate(kinds):
        for kind in present:
            arrival_s = number * phase_s
            while (arrival_s := arrival_s + rng.expovariate(load * kind.rate_per_s)) < (number + 1) * phase_s:
                requests.append(
                    TraceRequest(arrival_s, _length(rng, kind.prompt_tokens), _length(rng, kind.output_tokens))
                )
    return sorted(requests, key=lambda one: one.arrival_s)


def _length(rng: random.Random, median: int) -> int:
    return max(1, min(int(median * rng.lognormvariate(0.0, SPREAD)), 4 * median))
