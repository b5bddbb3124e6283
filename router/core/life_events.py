"""The events of a request's life cycle."""

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
    """A worker has been running the request since before the router started."""

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
    unreachable: bool = False  # source and target were already known to be unreachable


@dataclass(frozen=True, slots=True)
class HandoffStalled:
    """The source's writes are stalled, and it no longer waits for them."""

    reservation_id: str


@dataclass(frozen=True, slots=True)
class NoReachableDecode:
    """No decode worker can be reached from the prefill worker."""


@dataclass(frozen=True, slots=True)
class Corrupt:
    """The target found corrupt pages, and committed nothing."""

    reservation_id: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The sequence's last token was streamed; `worker`, where known, computed it and no longer holds the sequence."""

    reason: FinishReason
    worker: str | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """No more tokens are needed: a stop string (`reason`), or the client left or its deadline passed (`error`)."""

    reason: FinishReason | None
    error: BatonError | None


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker reports that it cannot continue the request."""

    error: BatonError
    worker: str


class LossReason(IntEnum):
    """How strongly the loss of a worker suggests that its requests caused it."""

    LEFT = 0  # on purpose, or its connection broke
    SILENT = 1  # it hangs, or is cut off
    DIED = 2


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker involved in this request is lost, or its work is."""

    worker: str
    loss: LossReason


@dataclass(frozen=True, slots=True)
class Migrate:
    """Migrate the decoding sequence to `worker`, or (None) to any worker as soon as one has capacity."""

    worker: str | None


@dataclass(frozen=True, slots=True)
class Stay:
    """Stop looking for another worker; a migration that has started continues."""


Event = (
    Routed
    | Held
    | DecodeFound
    | PagesReserved
    | PagesRefused
    | SourceEnded
    | HandoffStalled
    | NoReachableDecode
    | Corrupt
    | Finished
    | Stopped
    | Failed
    | Lost
    | Migrate
    | Stay
)
