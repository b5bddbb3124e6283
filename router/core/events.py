"""Events of a request, and what follows from them beside messages to workers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from baton.protocol.errors import BatonError
from baton.protocol.gateway_messages import EmittedTokens, Submit
from baton.protocol.messages import (
    HandoffCommitted,
    HandoffCorrupt,
    HandoffEnded,
    HandoffStalled,
    RequestFailed,
    ReservationRefused,
    Reserved,
)
from baton.protocol.request import FinishReason
from baton.router.core.commands import SendToGateway, SendToWorker
from baton.router.policy.placement import RoutingDecision


@dataclass(frozen=True, slots=True)
class Placed:
    """The policy has chosen its workers."""

    decision: RoutingDecision


@dataclass(frozen=True, slots=True)
class Adopted:
    """The worker has kept the sequence, which has so many output tokens, over a break of its link or of the router."""

    worker: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A gateway submits the live request, again or because its client has moved there."""

    gateway: str
    incarnation: str
    submit: Submit


@dataclass(frozen=True, slots=True)
class Emitted:
    """The gateway's answer to `AskEmitted`."""

    answer: EmittedTokens


@dataclass(frozen=True, slots=True)
class DecodeFound:
    """A decode worker with capacity, for a handoff that has no target."""

    worker: str


@dataclass(frozen=True, slots=True)
class NoReachableDecode:
    """No decode worker can be reached from the prefill worker."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The worker has computed the prompt; `chunk_ages_s` are the seconds since each chunk, if there were several."""

    worker: str
    chunk_ages_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The worker has computed the last of `num_tokens` output tokens, and no longer holds the sequence."""

    reason: FinishReason
    worker: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """No more tokens are needed: a stop string (`reason`), or the client left or its deadline passed (`error`).

    `num_tokens` is the length of the output, where known.
    """

    reason: FinishReason | None
    error: BatonError | None
    num_tokens: int | None = None


class LossReason(IntEnum):
    """How strongly the loss of a worker suggests that its requests caused it."""

    LEFT = 0  # on purpose, or its connection broke
    SILENT = 1  # it hangs, or is cut off
    DIED = 2


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker that may hold something for the request is lost, or its work is."""

    worker: str
    reason: LossReason


@dataclass(frozen=True, slots=True)
class CutOff:
    """The worker cannot reach the request's gateway, though the gateway lives."""

    worker: str


@dataclass(frozen=True, slots=True)
class NoticeLost:
    """The source has delivered the pages, but the target has not committed them in time."""


@dataclass(frozen=True, slots=True)
class Migrate:
    """Migrate the decoding sequence to `worker`, or (None) to any worker as soon as one has capacity."""

    worker: str | None


@dataclass(frozen=True, slots=True)
class Stay:
    """Stop looking for another worker; a migration that has started continues."""


Message = (
    Reserved | ReservationRefused | HandoffEnded | HandoffStalled | HandoffCommitted | HandoffCorrupt | RequestFailed
)
"""A worker's message about one request."""


@dataclass(frozen=True, slots=True)
class Reported:
    """A worker's message about the request. `unreachable`: source and target were known to be, when it came."""

    worker: str
    message: Message
    unreachable: bool = False


Event = (
    Placed
    | Adopted
    | Claimed
    | Emitted
    | DecodeFound
    | NoReachableDecode
    | FirstToken
    | Finished
    | Stopped
    | Lost
    | CutOff
    | NoticeLost
    | Migrate
    | Stay
    | Reported
)


@dataclass(frozen=True, slots=True)
class MigrationEnded:
    """The sequence is now at `worker`, or (None) stayed where it was for `reason`."""

    worker: str | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The request ends: with a reason, or with an error."""

    reason: FinishReason | None
    error: BatonError | None


Output = SendToWorker | SendToGateway | MigrationEnded | End
