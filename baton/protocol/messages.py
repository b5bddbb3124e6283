"""Messages between router and workers; `proto/baton/v1/worker.proto` is their wire format.

A worker's link is first in, first out in both directions; several messages of one moment travel as one batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from baton.protocol.bounds import MAX_IDS, Count, Id, Length, PositiveSeconds, Text
from baton.protocol.handoff import HandoffOutcome, HandoffReport, Reservation
from baton.protocol.prefix_hash import HASH_BYTES
from baton.protocol.request import DIGEST_BYTES, FinishReason, Request
from baton.protocol.worker import Endpoint, RoleName, WorkerInfo, WorkerLoad

# A message may list every page of a worker.
PageHashes = Annotated[tuple[Annotated[bytes, Length(HASH_BYTES, HASH_BYTES)], ...], Length(1 << 22)]

# Router to worker


@dataclass(frozen=True, slots=True)
class RegisterAck:
    """Answers the `Register` of one incarnation. Loads are due at least every `report_interval_s`."""

    router_id: str
    report_interval_s: float
    incarnation: str


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """Prepare transfers to this peer now, so that no request waits for a handshake."""

    endpoint: Endpoint
    host: str = ""  # on which it runs; empty: not known


@dataclass(frozen=True, slots=True)
class PeerLeft:
    agent: str


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute the prompt (and `emitted` output, when a request continues after a failure) and sample the next token.

    With `disaggregated` the pages wait for `SendPages`; without, the worker keeps the request and decodes it.
    """

    request: Request
    emitted: tuple[int, ...]
    disaggregated: bool
    role_epoch: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """Hold pages for this request's KV, to be written by another worker.

    `growth_tokens` more than are known now: the sequence keeps decoding while its pages travel.
    """

    reservation_id: str
    request: Request
    emitted: tuple[int, ...]
    role_epoch: int
    growth_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SendPages:
    """Write the request's pages into this reservation as they are computed. Answered by one `HandoffEnded`.

    A worker that is decoding the request continues until only its last page is missing at the target.
    """

    request_id: str
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop working on a request. Reserved pages stay held until `Release`: a write may still land in them."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Release:
    """Free a reservation's pages: no write into them is possible any more."""

    reservation_id: str


@dataclass(frozen=True, slots=True)
class Reregister:
    """Re-register under another incarnation: the router does not know this one (any more).

    From the router that had admitted it: its requests were re-assigned, so the worker drops everything. From another
    router: sequences that need no peer continue, and are registered with the worker.
    """

    incarnation: str
    router_id: str


@dataclass(frozen=True, slots=True)
class AdoptSequence:
    """Replay a kept sequence's output from `from_index` on, then stream its new tokens.

    Answered by `RequestFailed` (NotFound) if the worker no longer holds it.
    """

    request_id: str
    from_index: int


@dataclass(frozen=True, slots=True)
class ResyncPages:
    """A `PagesChanged` was lost: answer with a snapshot."""


@dataclass(frozen=True, slots=True)
class SwitchRole:
    """Take on another role; weights, pages and prefix cache stay. Answered by `RoleChanged`."""

    role: RoleName
    role_epoch: int


WorkOrder = Prefill | Reserve | SendPages | Cancel | Release | AdoptSequence
RouterMessage = RegisterAck | Reregister | PeerJoined | PeerLeft | ResyncPages | SwitchRole | WorkOrder

# Worker to router


@dataclass(frozen=True, slots=True)
class DetachedSequence:
    """A detached sequence of an earlier router: it is still decoding or has just ended, and its tokens are buffered."""

    request_id: Id
    digest: Annotated[bytes, Length(DIGEST_BYTES, DIGEST_BYTES)]  # `Request.digest`
    num_tokens: Count  # Output tokens so far
    limit_tokens: Count  # Maximum of prompt and output tokens


@dataclass(frozen=True, slots=True)
class Register:
    info: WorkerInfo
    held: Annotated[tuple[DetachedSequence, ...], Length(MAX_IDS)] = ()


@dataclass(slots=True)  # not frozen: one is made per token, and that would take three times as long
class TokenOutput:
    """One token of one request. `index` counts output tokens from 0."""

    request_id: str
    index: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish: FinishReason | None = None
    cached_tokens: int = 0  # with a prefill's token: prompt tokens that came from the prefix cache


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Every token of one step."""

    tokens: tuple[TokenOutput, ...]


@dataclass(frozen=True, slots=True)
class Reserved:
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class ReservationRefused:
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
    """The source's writes into the reservation are stalled, and it no longer waits for them. They may still arrive, so
    `HandoffEnded` follows once they have ended; until then the source's pages are held, too."""

    request_id: Id
    reservation_id: Id


@dataclass(frozen=True, slots=True)
class HandoffCommitted:
    """The target has the notice; the sequence is in its running batch."""

    request_id: Id
    reservation_id: Id


@dataclass(frozen=True, slots=True)
class HandoffCorrupt:
    """The target has the notice, but corrupt pages: it commits nothing."""

    request_id: Id
    reservation_id: Id
    wrong_pages: Count


@dataclass(frozen=True, slots=True)
class LinkMeasured:
    """The measured rate to a peer, as one large write. Sent once per peer."""

    agent: Id
    num_bytes: Count
    seconds: PositiveSeconds

    @property
    def bytes_per_s(self) -> float:
        return self.num_bytes / self.seconds


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A worker cannot continue a request; `error` names a class of the error tree."""

    request_id: Id
    error: Id
    message: Text


@dataclass(frozen=True, slots=True)
class Alive:
    """A heartbeat of a worker that is busy with a long step."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    load: WorkerLoad


@dataclass(frozen=True, slots=True)
class PagesChanged:
    """Prefix pages that became matchable and that were evicted, since the message numbered one less.

    A `snapshot` lists all that are matchable now and replaces earlier messages.
    """

    sequence_number: Count
    stored: PageHashes
    evicted: PageHashes
    snapshot: bool = False


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """The role the worker has now; `error` gives the reason if it is not the ordered one."""

    role: RoleName
    role_epoch: Count
    error: Text = ""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The worker leaves and writes no more: on purpose, or because it `failed`."""

    reason: Text
    failed: bool = False


HandoffMessage = Reserved | ReservationRefused | HandoffEnded | HandoffStalled | HandoffCommitted | HandoffCorrupt
WorkerReport = Register | Alive | LoadReport | PagesChanged | LinkMeasured | RoleChanged | Goodbye
WorkerMessage = StepOutput | RequestFailed | HandoffMessage | WorkerReport
