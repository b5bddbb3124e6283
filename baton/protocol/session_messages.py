"""Messages of a worker's session with its router; `proto/baton/v1/worker.proto` is their wire format.

A worker registers, reports what it has and does, and receives its peers and gateways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from baton.protocol.bounds import MAX_IDS, Count, Id, Label, Length, PositiveSeconds, Text
from baton.protocol.prefix_hash import PageKeys
from baton.protocol.request import DIGEST_BYTES
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
class Reregister:
    """Re-register under a new incarnation, because the router does not recognise this one.

    If the same router had registered the incarnation, it has re-assigned its requests, and the worker drops all
    sequences. If another router had, sequences that need no peer continue and are registered with the worker.
    """

    incarnation: str
    router_id: str


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


SessionOrder = RegisterAck | Reregister | PeerJoined | PeerLeft | GatewayJoined | GatewayLeft | ResyncPages | SwitchRole

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
    stored: PageKeys
    evicted: PageKeys
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


WorkerReport = Register | Alive | LoadReport | PagesChanged | LinkMeasured | GatewayUnreachable | RoleChanged | Goodbye
