"""What each worker holds for one request now, and its failures so far: the memory of its life cycle. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.errors import BatonError, HandoffFailed, NotFound, WrongRole
from baton.protocol.handoff import HandoffReport

MAX_HANDOFF_FAILURES = 3
MAX_MISROUTED = 3  # a worker may change its role while a request is in flight to it, or have dropped a kept sequence


@dataclass(slots=True)
class Attempt:
    """What each worker holds for the request now. `None`: no worker."""

    source: str | None = None  # has the request and, unless it runs both phases, its pages until they are delivered
    target: str | None = None  # was asked to reserve, and may hold pages
    reservation_id: str = ""
    sending: bool = False  # the source may be writing into the reservation
    moving: bool = False  # a migration: the source decodes the request
    insist: bool = False  # wait for any worker with capacity
    corrupt: bool = False  # the source's pages were found corrupt
    absent: bool = False  # the source reported that it does not have the request
    report: HandoffReport | None = None

    def awaits(self, reservation_id: str) -> bool:
        """Whether the source has yet to say how its handoff into the reservation ended."""
        return self.sending and reservation_id == self.reservation_id


@dataclass(slots=True)
class RetryBudget:
    """The failures of a request so far, over all its attempts."""

    crash_weight: int = 0  # for lost workers
    handoffs_failed: int = 0
    misrouted: int = 0
    error: BatonError | None = None  # set: the request is not retried

    def on_misrouted(self, error: BatonError) -> bool:
        """Whether the worker only does not have it, and to look for another one."""
        self.misrouted += 1
        return isinstance(error, WrongRole | NotFound) and self.misrouted <= MAX_MISROUTED

    def on_handoff_failed(self, sentence: str) -> bool:
        """Whether to try another one."""
        self.handoffs_failed += 1
        if self.handoffs_failed >= MAX_HANDOFF_FAILURES:
            self.error = HandoffFailed(sentence)
        return self.error is None
