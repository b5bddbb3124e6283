"""What a request's life cycle knows of its present attempt, and of what went wrong in those before. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import BatonError, HandoffFailed
from cluster.handoff import HandoffReport

MAX_HANDOFF_FAILURES = 3


@dataclass(slots=True)
class Attempt:
    """Who holds what for the request now. `None` means nobody."""

    source: str | None = None  # has the request and, unless it runs there whole, its pages until they are delivered
    target: str | None = None  # was asked to reserve, and may hold pages
    reservation_id: str = ""
    sending: bool = False  # the source may be writing into the reservation
    moving: bool = False  # the source decodes the request, and a migration was asked for
    insist: bool = False  # whoever has room is welcome, and is waited for
    corrupt: bool = False  # what the source delivers is worth nothing
    report: HandoffReport | None = None

    def awaits(self, reservation_id: str) -> bool:
        """Whether the source has yet to say how its handoff into the reservation ended."""
        return self.sending and reservation_id == self.reservation_id


@dataclass(slots=True)
class Trouble:
    """What went wrong with a request so far, over all its attempts."""

    workers_lost: int = 0
    handoffs_failed: int = 0
    misrouted: int = 0
    error: BatonError | None = None  # it is not tried any more

    def on_handoff_failed(self, sentence: str) -> bool:
        """Whether to try another one."""
        self.handoffs_failed += 1
        if self.handoffs_failed >= MAX_HANDOFF_FAILURES:
            self.error = HandoffFailed(sentence)
        return self.error is None
