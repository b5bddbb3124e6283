"""What a request's life cycle hears."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from baton.protocol.errors import BatonError
from baton.protocol.handoff import HandoffOutcome, HandoffReport, Reservation
from baton.protocol.request import FinishReason
from baton.router.policy.routing import RoutingDecision


@dataclass(frozen=True, slots=True)
class Routed:
    decision: RoutingDecision


@dataclass(frozen=True, slots=True)
class Held:
    """A worker has run the request since before the router came."""

    worker: str


@dataclass(frozen=True, slots=True)
class DecodeFound:
    worker: str


@dataclass(frozen=True, slots=True)
class PagesReserved:
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class PagesRefused:
    reservation_id: str


@dataclass(frozen=True, slots=True)
class SourceEnded:
    reservation_id: str
    outcome: HandoffOutcome
    report: HandoffReport
    reason: str
    apart: bool = False  # it was known before that source and target do not reach each other


@dataclass(frozen=True, slots=True)
class HandoffStalled:
    """The source's writes make no progress, and it goes on without them."""

    reservation_id: str


@dataclass(frozen=True, slots=True)
class Stranded:
    """Nobody that decodes can be reached from the prefill worker."""


@dataclass(frozen=True, slots=True)
class Corrupt:
    """The target found pages that are not what was sent, and committed nothing."""

    reservation_id: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The sequence's last token was streamed; `worker`, where known, computed it and holds the sequence no more."""

    reason: FinishReason
    worker: str | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nobody wants more tokens: a stop string came (`reason`), or the client left or its deadline passed (`error`)."""

    reason: FinishReason | None
    error: BatonError | None


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker refuses to go on with the request."""

    error: BatonError
    worker: str


class Loss(IntEnum):
    """How much the requests of a lost worker may be to blame for it."""

    LEFT = 0  # on purpose, or its connection broke
    SILENT = 1  # it hangs, or is cut off
    DIED = 2


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker that had a part in this request is gone, or what it was doing is."""

    worker: str
    loss: Loss


@dataclass(frozen=True, slots=True)
class Migrate:
    """Move the sequence, which decodes, to `worker`, or (None) away from where it is as soon as anybody has room."""

    worker: str | None


@dataclass(frozen=True, slots=True)
class Stay:
    """Look for no other worker any more; a migration that has begun goes on."""


Event = (
    Routed
    | Held
    | DecodeFound
    | PagesReserved
    | PagesRefused
    | SourceEnded
    | HandoffStalled
    | Stranded
    | Corrupt
    | Finished
    | Stopped
    | Failed
    | Lost
    | Migrate
    | Stay
)
