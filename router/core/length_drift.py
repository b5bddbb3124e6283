"""Whether outputs are longer or shorter than predicted, before they end. Pure.

The length predictor learns from complete answers, so it sees a shift to long answers late. Running answers show it
sooner: one that has passed its expected end is expected to be longer. All recent requests count, ended or not,
because those that still run are the long ones.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from baton.router.core.live_request import LiveRequest

WINDOW_S = 20.0  # age of the requests that count
LOOKED_AT = 500  # of them, evenly chosen
KEPT = 1000  # of them at most: every one of them keeps its prompt


@dataclass(eq=False)
class RecentAnswers:
    """The requests of the last WINDOW_S seconds, or every second, fourth and so on at high rates."""

    _requests: deque[tuple[float, LiveRequest]] = field(default_factory=deque)
    _every: int = 1
    _count: int = 0

    def add(self, record: LiveRequest, now: float) -> None:
        self._drop(now)
        self._count += 1
        if self._count % self._every == 0:
            self._requests.append((now, record))
        if len(self._requests) > KEPT:
            self._requests = deque(list(self._requests)[::2])
            self._every *= 2

    def _drop(self, now: float) -> None:
        while self._requests and self._requests[0][0] < now - WINDOW_S:
            self._requests.popleft()
        if len(self._requests) < KEPT // 4:
            self._every = max(1, self._every // 2)

    def drift(self, now: float) -> float:
        """Tokens of recent answers, as known now, relative to the prediction on arrival; 1 without any."""
        self._drop(now)
        known = predicted = 0.0
        step = len(self._requests) // LOOKED_AT + 1
        for _, record in list(self._requests)[::step]:
            emitted = record.output_tokens
            if not emitted:
                continue  # refused, or without output: no information
            expected = record.prediction.distribution
            predicted += expected.remaining()
            known += emitted if record.closed else emitted + expected.remaining(emitted)
        return known / predicted if predicted else 1.0
