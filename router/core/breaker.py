"""Who is lost so often that nobody should rely on it. Pure.

A death is a fault of the worker. A silence that ends with the same process (it was cut off) is more likely one of the
network, which may strike many at once; it counts for less. Who leaves on purpose, or joins anew because its connection
broke, is not counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

BREAKER_DEATHS, BREAKER_S = 3, 600.0  # a worker that died so often within that time gets nothing until undrained
CUTS_PER_DEATH = 3  # that healed

Process = tuple[str, int]  # host and process id; 0 where that is not known
UNKNOWN: Process = ("", 0)  # also of one that is known to have died: whoever comes back is another one


@dataclass(slots=True, eq=False)
class _Loss:
    moment_s: float
    process: Process
    healed: bool = False


@dataclass(eq=False)
class Breaker:
    """Remembers the losses of the last minutes."""

    _losses: dict[str, deque[_Loss]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._losses)

    def lost(self, worker: str, process: Process, now: float) -> None:
        """It has died, or looks like it."""
        most = BREAKER_DEATHS * CUTS_PER_DEATH
        self._losses.setdefault(worker, deque(maxlen=most)).append(_Loss(now, process))
        self._losses = {name: losses for name, losses in self._losses.items() if now - losses[-1].moment_s < BREAKER_S}

    def returned(self, worker: str, process: Process) -> None:
        """It registers: if that is the process that was lost, it was only cut off."""
        losses = self._losses.get(worker)
        if losses and process[1] and losses[-1].process == process:
            losses[-1].healed = True

    def tripped(self, worker: str, now: float) -> bool:
        """Whether it was lost too often."""
        recent = [loss for loss in self._losses.get(worker, ()) if now - loss.moment_s < BREAKER_S]
        cuts = sum(loss.healed for loss in recent)
        return CUTS_PER_DEATH * (len(recent) - cuts) + cuts >= CUTS_PER_DEATH * BREAKER_DEATHS
