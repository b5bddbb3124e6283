"""Operations on the pools and their progress."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from baton.protocol.worker import RoleName

PROBE = "probe/"  # prefix of the ids of verifying requests


@dataclass(frozen=True, slots=True)
class Drain:
    """Stop new work on these workers, and migrate their sequences."""

    workers: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"drain {', '.join(self.workers)}"


@dataclass(frozen=True, slots=True)
class Undrain:
    """Let these workers serve again."""

    workers: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"undrain {', '.join(self.workers)}"


@dataclass(frozen=True, slots=True)
class Rebalance:
    """Set the number of workers in each of the two pools."""

    prefill: int
    decode: int

    @property
    def title(self) -> str:
        return f"rebalance to {self.prefill} prefill + {self.decode} decode"


@dataclass(frozen=True, slots=True)
class Migrate:
    """Migrate a decoding request to another worker; None: the router chooses."""

    request_id: str
    worker: str | None = None

    @property
    def title(self) -> str:
        return f"migrate {self.request_id}" + (f" to {self.worker}" if self.worker else "")


OperationSpec = Drain | Undrain | Rebalance | Migrate


class OperationState(Enum):
    PLANNED = "planned"  # a dry run: no step is executed
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self is not OperationState.RUNNING


class StepState(Enum):
    WAITING = "waiting"
    DRAINING = "draining"
    SWITCHING = "switching"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (StepState.DONE, StepState.FAILED, StepState.CANCELLED)


@dataclass(slots=True, eq=False)
class Step:
    """One worker's part of an operation."""

    worker: str
    action: str
    to_role: RoleName | None = None  # where the step is a role switch
    state: StepState = StepState.WAITING
    detail: str = ""
    started_s: float | None = None
    ended_s: float | None = None

    def elapsed_s(self, now: float) -> float:
        if self.started_s is None:
            return 0.0
        return (now if self.ended_s is None else self.ended_s) - self.started_s


@dataclass(slots=True, eq=False)
class Operation:
    """A started operation. Its steps run one at a time."""

    operation_id: str
    spec: OperationSpec
    steps: list[Step]
    started_s: float
    state: OperationState = OperationState.RUNNING
    message: str = ""
    ended_s: float | None = None

    def end(self, now: float) -> None:
        """Its steps have ended, and it ends with their outcome."""
        states = [step.state for step in self.steps]
        self.ended_s = now
        if StepState.FAILED in states:
            self.state, self.message = OperationState.FAILED, self.steps[states.index(StepState.FAILED)].detail
        elif StepState.CANCELLED in states:
            self.state, self.message = OperationState.CANCELLED, "it was cancelled; what was done stays"
        else:
            self.state, self.message = OperationState.DONE, "" if states else "the pools are so already"

    def elapsed_s(self, now: float) -> float:
        return (now if self.ended_s is None else self.ended_s) - self.started_s
