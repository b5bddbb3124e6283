"""Messages between router and workers; `proto/baton/v1/worker.proto` is their wire format.

A worker's link keeps the order of messages in both directions. Messages of one moment travel as one batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from baton.protocol.bounds import MAX_IDS, Count, Id, Label, Length, PositiveSeconds, Text
from baton.protocol.handoff import HandoffOutcome, HandoffReport, Reservation
from baton.protocol.prefix_hash import PageHashes
from baton.protocol.request import DIGEST_BYTES, FinishReason, Request
from baton.protocol.worker import Endpoint, RoleName, WorkerInfo, WorkerLoad

# Router to worker


@dataclass(frozen=True, slots=True)
class RegisterAck:
    """The answer to the `Register` of an incarnation. Load reports are due every `report_interval_s` seconds."""

    router_id: str
    report_interval_s: float
    incarnation: str


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """Prepare transfers to a new peer now, so that no request waits for a handshake."""

    endpoint: Endpoint
    host: str = ""  # The peer's host; "": unknown


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """Drop the connection to a peer that has ended."""

    agent: str


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
class Reregister:
    """Re-register under a new incarnation, because the router does not recognise this one.

    If the same router had registered the incarnation, it has re-assigned its requests, and the worker drops all
    sequences. If another router had, sequences that need no peer continue and are registered with the worker.
    """

    incarnation: str
    router_id: str


@dataclass(frozen=True, slots=True)
class AdoptSequence:
    """Send a sequence's tokens to this gateway, from `from_index` on; `RequestFailed` if the sequence is gone."""

    request_id: Id
    gateway: Id
    from_index: Count


@dataclass(frozen=True, slots=True)
class ResyncPages:
    """Send a snapshot of the prefix pages, because a `PagesChanged` was lost."""


@dataclass(frozen=True, slots=True)
class SwitchRole:
    """Change the role; weights, pages and prefix cache stay. Answered by `RoleChanged`."""

    role: RoleName
    role_epoch: int


@dataclass(frozen=True, slots=True)
class GatewayJoined:
    """Connect to a gateway's token socket; `public_key` is its CURVE key, empty on an open link."""

    gateway: Label
    incarnation: Label
    address: Label
    public_key: Label = ""


@dataclass(frozen=True, slots=True)
class GatewayLeft:
    """Close the link to a gateway; its sequences keep decoding and their tokens until another one adopts them."""

    gateway: Label
    incarnation: Label


WorkOrder = Prefill | Reserve | SendPages | Cancel | Release | AdoptSequence
SessionOrder = RegisterAck | Reregister | PeerJoined | PeerLeft | GatewayJoined | GatewayLeft | ResyncPages | SwitchRole
RouterMessage = SessionOrder | WorkOrder

# Worker to router


@dataclass(frozen=True, slots=True)
class DetachedSequence:
    """A sequence of an earlier router that is decoding or has just ended, and whose tokens can be sent again."""

    request_id: Id
    digest: Annotated[bytes, Length(DIGEST_BYTES, DIGEST_BYTES)]  # `Request.digest`
    num_tokens: Count  # Output tokens so far
    limit_tokens: Count  # Maximum of prompt and output tokens


@dataclass(frozen=True, slots=True)
class Register:
    """An incarnation of a worker joins, with the sequences that it kept from an earlier router."""

    info: WorkerInfo
    held: Annotated[tuple[DetachedSequence, ...], Length(MAX_IDS)] = ()


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The prompt is computed, and the request's gateway has the next token."""

    request_id: Id


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
class LinkMeasured:
    """The measured rate of writes to a peer: a large write's size and duration. Sent once per peer."""

    agent: Id
    num_bytes: Count
    seconds: PositiveSeconds

    @property
    def bytes_per_s(self) -> float:
        """The rate in bytes per second."""
        return self.num_bytes / self.seconds


@dataclass(frozen=True, slots=True)
class GatewayUnreachable:
    """The worker has had no connection to a gateway for a while, or (`reachable`) has one again."""

    gateway: Label
    incarnation: Label  # Of the gateway; the router may have registered a later one
    reachable: bool = False


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A worker cannot continue a request; `error` is the name of a class in `baton.protocol.errors`."""

    request_id: Id
    error: Id
    message: Text


@dataclass(frozen=True, slots=True)
class Alive:
    """The heartbeat of a worker during a long step."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A worker's load, sent periodically and after changes."""

    load: WorkerLoad


@dataclass(frozen=True, slots=True)
class PagesChanged:
    """Prefix pages stored and evicted since the previous message; a `snapshot` lists all pages in `stored`."""

    sequence_number: Count
    stored: PageHashes
    evicted: PageHashes
    snapshot: bool = False


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """The worker's current role. `error` is the reason if it differs from the role in `SwitchRole`."""

    role: RoleName
    role_epoch: Count
    error: Text = ""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The worker ends and writes no more; `failed`: because of an error."""

    reason: Text
    failed: bool = False


HandoffMessage = Reserved | ReservationRefused | HandoffEnded | HandoffStalled | HandoffCommitted | HandoffCorrupt
SequenceMessage = FirstToken | SequenceEnded | RequestFailed
WorkerReport = Register | Alive | LoadReport | PagesChanged | LinkMeasured | GatewayUnreachable | RoleChanged | Goodbye
WorkerMessage = SequenceMessage | HandoffMessage | WorkerReport
