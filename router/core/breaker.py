"""Circuit breaker: workers that die so often that they get no work. Pure.

A death is the worker's fault. A timeout after which the same process returns is more likely the network's, which may
affect many workers at once, so it counts less. Leaving on purpose, or re-registering because the connection broke, does
not count.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

BREAKER_DEATHS, BREAKER_S = 3, 600.0  # so many deaths within that time: no work until it is undrained
CUTS_PER_DEATH = 3  # timeouts after which the same process returned

Process = tuple[str, int]  # host and process id; 0 where that is not known
UNKNOWN: Process = ("", 0)  # also after a known death: the process that returns is a new one


@dataclass(slots=True, eq=False)
class _Loss:
    moment_s: float
    process: Process
    healed: bool = False


@dataclass(eq=False)
class Breaker:
    """The losses of the last minutes, by worker."""

    _losses: dict[str, deque[_Loss]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._losses)

    def lost(self, worker: str, process: Process, now: float) -> None:
        """The worker has died or timed out."""
        most = BREAKER_DEATHS * CUTS_PER_DEATH
        self._losses.setdefault(worker, deque(maxlen=most)).append(_Loss(now, process))
        self._losses = {name: losses for name, losses in self._losses.items() if now - losses[-1].moment_s < BREAKER_S}

    def returned(self, worker: str, process: Process) -> None:
        """The worker registers: if it is the process that was lost, it was only cut off."""
        losses = self._losses.get(worker)
        if losses and process[1] and losses[-1].process == process:
            losses[-1].healed = True

    def lost_since(self, since_s: float) -> list[str]:
        """The workers that were lost after a moment, also those that have returned."""
        return [name for name, losses in self._losses.items() if losses[-1].moment_s >= since_s]

    def tripped(self, worker: str, now: float) -> bool:
        """Whether it was lost too often."""
        recent = [loss for loss in self._losses.get(worker, ()) if now - loss.moment_s < BREAKER_S]
        cuts = sum(loss.healed for loss in recent)
        return CUTS_PER_DEATH * (len(recent) - cuts) + cuts >= CUTS_PER_DEATH * BREAKER_DEATHS
