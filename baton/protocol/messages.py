"""Work orders of the router and their answers by workers; `proto/baton/v1/worker.proto` is their wire format.

A worker's link keeps the order of messages in both directions. Messages of one moment travel as one batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from baton.protocol.bounds import Count, Id, Length, Seconds, Text
from baton.protocol.handoff import HandoffOutcome, HandoffReport, Reservation
from baton.protocol.request import FinishReason, Request
from baton.protocol.session_messages import SessionOrder, WorkerReport

MAX_CHUNKS = 64  # Of a prompt, whose times are reported

# Router to worker


@dataclass(frozen=True, slots=True)
class Work:
    """A request as a worker computes it. `emitted` is its output so far: it is prefilled with the prompt."""

    request: Request
    emitted: tuple[int, ...] = ()


Payload = bytes | Work
"""`Work` on its way through the router, which does not read it: encoded where it crosses a link."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute the prompt, send the next token to the request's gateway, and report it as `FirstToken`.

    With `disaggregated` the pages wait for `SendPages`; without it the worker decodes the request, too.
    """

    request_id: Id
    work: Payload
    gateway: Id  # Gets the tokens; "": none does, because the request probes the worker
    disaggregated: bool
    role_epoch: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """Reserve pages for a request's KV, which another worker will write."""

    reservation_id: Id
    request_id: Id
    work: Payload
    gateway: Id
    role_epoch: int
    growth_tokens: Count = 0  # Output beyond that of `work`, and room for what the source decodes during the transfer


@dataclass(frozen=True, slots=True)
class SendPages:
    """Write the request's pages into a reservation as they are computed. Answered by one `HandoffEnded`.

    A worker that decodes the request continues to do so until only the last page is missing at the target.
    """

    request_id: str
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop work on a request. Reserved pages stay held until `Release`, because a write may still land in them."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Release:
    """Free a reservation's pages; no write into them is in flight."""

    reservation_id: str


@dataclass(frozen=True, slots=True)
class AdoptSequence:
    """Send a sequence's tokens to this gateway, from `from_index` on; `RequestFailed` if the sequence is gone."""

    request_id: Id
    gateway: Id
    from_index: Count


WorkOrder = Prefill | Reserve | SendPages | Cancel | Release | AdoptSequence
RouterMessage = SessionOrder | WorkOrder

# Worker to router


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The prompt is computed, and the request's gateway has the next token."""

    request_id: Id
    chunk_ages_s: Annotated[tuple[Seconds, ...], Length(MAX_CHUNKS)] = ()  # Since the end of each, if several


@dataclass(frozen=True, slots=True)
class SequenceEnded:
    """The request's last token was sampled, and its worker holds no page for it; `num_tokens`: its whole output."""

    request_id: Id
    reason: FinishReason
    num_tokens: Count


@dataclass(frozen=True, slots=True)
class Reserved:
    """The answer to `Reserve`."""

    reservation: Reservation

    @property
    def request_id(self) -> str:
        return self.reservation.request_id

    @property
    def reservation_id(self) -> str:
        return self.reservation.reservation_id


@dataclass(frozen=True, slots=True)
class ReservationRefused:
    """The refusal of a `Reserve`, with its reason."""

    reservation_id: Id
    request_id: Id
    reason: Text


@dataclass(frozen=True, slots=True)
class HandoffEnded:
    """The source's answer to `SendPages`."""

    request_id: Id
    reservation_id: Id
    outcome: HandoffOutcome
    report: HandoffReport = field(default_factory=HandoffReport)
    reason: Text = ""


@dataclass(frozen=True, slots=True)
class HandoffStalled:
    """The source's writes into the reservation make no progress, and the source no longer waits for them.

    They may still arrive, so the source holds its pages until they have ended; then `HandoffEnded` follows.
    """

    request_id: Id
    reservation_id: Id


@dataclass(frozen=True, slots=True)
class HandoffCommitted:
    """The target has received the notice, and the sequence is in its running batch."""

    request_id: Id
    reservation_id: Id


@dataclass(frozen=True, slots=True)
class HandoffCorrupt:
    """The target has received the notice, but pages are corrupt, so it drops the sequence."""

    request_id: Id
    reservation_id: Id
    wrong_pages: Count


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A worker cannot continue a request; `error` is the name of a class in `baton.protocol.errors`."""

    request_id: Id
    error: Id
    message: Text


HandoffMessage = Reserved | ReservationRefused | HandoffEnded | HandoffStalled | HandoffCommitted | HandoffCorrupt
SequenceMessage = FirstToken | SequenceEnded | RequestFailed
WorkerMessage = SequenceMessage | HandoffMessage | WorkerReport
