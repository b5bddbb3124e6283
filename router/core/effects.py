"""What a request's life cycle asks for: the core performs it."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.errors import BatonError
from baton.protocol.handoff import HandoffReport, Reservation
from baton.protocol.request import FinishReason


@dataclass(frozen=True, slots=True)
class Route:
    """Queue the request until placement decides; answered by `Routed`."""


@dataclass(frozen=True, slots=True)
class FindDecode:
    """Wait for a decode worker with room; answered by `DecodeFound`."""

    avoid: str | None


@dataclass(frozen=True, slots=True)
class StartPrefill:
    worker: str
    hand_off: bool


@dataclass(frozen=True, slots=True)
class ContinueWork:
    """The worker runs the request already; it shall tell its tokens again."""

    worker: str


@dataclass(frozen=True, slots=True)
class ReservePages:
    worker: str
    reservation_id: str


@dataclass(frozen=True, slots=True)
class StartHandoff:
    source: str
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class FindRoom:
    """Wait for another worker that decodes to have room for a sequence that has to leave `home`; answered by
    `DecodeFound`."""

    home: str
    avoid: str | None  # it has just refused


@dataclass(frozen=True, slots=True)
class StopSeeking:
    """No decode worker is wanted any more."""


@dataclass(frozen=True, slots=True)
class MigrationEnded:
    """The sequence is at `worker` now, or stays where it was, because of `reason`."""

    worker: str | None
    reason: str = ""
    report: HandoffReport | None = None


@dataclass(frozen=True, slots=True)
class CancelWork:
    worker: str


@dataclass(frozen=True, slots=True)
class ReleasePages:
    worker: str
    reservation_id: str


@dataclass(frozen=True, slots=True)
class End:
    """The client's stream ends: with a reason, or with an error."""

    reason: FinishReason | None
    error: BatonError | None
    report: HandoffReport | None = None


Assignment = StartPrefill | ContinueWork | ReservePages | CancelWork
WorkerEffect = Assignment | StartHandoff | ReleasePages
"""Those that a worker is told of."""

Effect = (
    Route
    | FindDecode
    | FindRoom
    | StopSeeking
    | StartPrefill
    | ContinueWork
    | ReservePages
    | StartHandoff
    | MigrationEnded
    | CancelWork
    | ReleasePages
    | End
)
