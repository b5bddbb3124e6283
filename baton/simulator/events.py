"""The virtual clock: events in order of time, those of one moment in the order they were made."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count

Action = Callable[[], None]


class Events:
    """Runs actions at their time. `now` is virtual seconds; nothing waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done = 0
        self._numbers = count()
        self._heap: list[tuple[float, int, Action]] = []

    def __len__(self) -> int:
        """Actions that are still to come."""
        return len(self._heap)

    @property
    def next_s(self) -> float:
        """The time of the next action; infinity without one."""
        return self._heap[0][0] if self._heap else math.inf

    def at(self, time_s: float, action: Action) -> None:
        """Run `action` at a time that is not past."""
        heapq.heappush(self._heap, (max(time_s, self.now), next(self._numbers), action))

    def after(self, delay_s: float, action: Action) -> None:
        self.at(self.now + delay_s, action)

    def step(self) -> bool:
        """Run the next action; False when there is none."""
        if not self._heap:
            return False
        self.now, _, action = heapq.heappop(self._heap)
        self.done += 1
        action()
        return True
