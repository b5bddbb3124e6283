"""The effects of a request's life cycle, which the core performs."""

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
    """Wait for a decode worker with capacity; answered by `DecodeFound`."""

    avoid: str | None


@dataclass(frozen=True, slots=True)
class StartPrefill:
    worker: str
    disaggregated: bool


@dataclass(frozen=True, slots=True)
class AdoptWork:
    """The worker already runs the request; it replays the tokens from an index on."""

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
class FindCapacity:
    """Wait for another decode worker with capacity for a sequence that has to leave `home`; answered by
    `DecodeFound`."""

    home: str
    avoid: str | None  # it has just refused


@dataclass(frozen=True, slots=True)
class StopSeeking:
    """Stop looking for a decode worker."""


@dataclass(frozen=True, slots=True)
class MigrationEnded:
    """The sequence is now at `worker`, or (None) stayed where it was for `reason`."""

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


Assignment = StartPrefill | AdoptWork | ReservePages | CancelWork
WorkerEffect = Assignment | StartHandoff | ReleasePages
"""Those that a worker is told of."""

Effect = (
    Route
    | FindDecode
    | FindCapacity
    | StopSeeking
    | StartPrefill
    | AdoptWork
    | ReservePages
    | StartHandoff
    | MigrationEnded
    | CancelWork
    | ReleasePages
    | End
)
