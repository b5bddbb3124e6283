"""Messages of gateways, with the router and with workers; `proto/baton/v1/worker.proto` is their wire format.

A gateway owns its clients' streams: what was emitted is known there only. Links keep the order of messages as long as
their connection lasts. After a break the gateway registers again, and each worker attaches its streams again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from baton.protocol.bounds import MAX_IDS, Count, Id, Ids, Label, Length, Positive, Seconds, Text, WallClock
from baton.protocol.handoff import HandoffReport
from baton.protocol.messages import Payload
from baton.protocol.prefix_hash import PageKeys
from baton.protocol.prompt_logprobs import PromptLogprobs
from baton.protocol.request import DIGEST_BYTES, FinishReason, Objectives
from baton.protocol.session_messages import Goodbye, Reregister
from baton.protocol.trace_context import TraceContext

# Gateway to router


@dataclass(frozen=True, slots=True)
class GatewayInfo:
    """What a gateway registers with."""

    name: Label
    incarnation: Label
    worker_address: Label  # Where workers connect, such as "tcp://127.0.0.1:5600"
    public_address: Label = ""  # Where clients connect, "host:port"
    host: Label = ""
    pid: Count = 0
    metrics_address: Label = ""  # Where Prometheus reads its metrics, "host:port"; "": nowhere


@dataclass(frozen=True, slots=True)
class RegisterGateway:
    """A gateway joins, or joins again after its connection broke or the router restarted.

    `request_ids` are its live streams. A `Submit` with `resumed` follows for each. The router stops what it runs for
    this gateway and finds not listed.
    """

    info: GatewayInfo
    request_ids: Ids = ()


@dataclass(frozen=True, slots=True)
class Submit:
    """A request, or (`resumed`) the rest of one that may be live; answered by `RequestEnded`, at last.

    `work` holds the first `num_emitted` output tokens.
    """

    request_id: Id
    digest: Annotated[bytes, Length(DIGEST_BYTES, DIGEST_BYTES)]  # `Request.digest`
    num_prompt_tokens: Positive
    max_tokens: Positive  # Of the output
    page_keys: PageKeys  # Of the prompt's full pages
    work: Payload
    num_emitted: Count = 0
    resumed: bool = False
    tenant: Id = ""
    priority: int = 0
    objectives: Objectives = field(default_factory=Objectives)
    age_s: Seconds = 0.0  # Since its client sent it
    deadline_in_s: Seconds | None = None
    submission: Count = 0  # Counts the submissions of this stream
    trace: TraceContext | None = None  # None: the request is not sampled
    called_at_s: WallClock = 0.0  # When its present client called, on the gateway's wall clock: it orders two calls


@dataclass(frozen=True, slots=True)
class StopRequest:
    """No more tokens are needed: the stream is complete (`reason`), or its client has left (`error`)."""

    request_id: Id
    num_tokens: Count  # That the stream has
    reason: FinishReason | None = None
    error: Id = ""  # The name of a class in `baton.protocol.errors`
    message: Text = ""


@dataclass(frozen=True, slots=True)
class EmittedTokens:
    """The answer to `AskEmitted`: the request with its output so far."""

    request_id: Id
    work: Payload
    num_emitted: Count


@dataclass(frozen=True, slots=True)
class GatewayLoad:
    """The heartbeat of a gateway, with what it has done so far."""

    streams: Count  # Open now
    tokens: Count  # Since its start
    requests: Count
    cpu_s: Seconds
    waiting_bytes: Count = 0  # Of text that waits for tokenisation


# Router to gateway


@dataclass(frozen=True, slots=True)
class GatewayRegistered:
    """The answer to `RegisterGateway`; a `WorkerJoined` follows for each worker."""

    router_id: Label
    incarnation: Label


@dataclass(frozen=True, slots=True)
class Placed:
    """The request has left the queue. The decode worker may be open, and may change."""

    request_id: Id
    prefill_worker: Label
    decode_worker: Label = ""


@dataclass(frozen=True, slots=True)
class AskEmitted:
    """Send the request with its output so far: it has to be computed again."""

    request_id: Id


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """The router is done with a request: `reason` for an answer of `num_tokens` tokens, `error` for a failure."""

    request_id: Id
    reason: FinishReason | None = None
    error: Id = ""  # The name of a class in `baton.protocol.errors`
    message: Text = ""
    retry_after_s: Seconds | None = None
    num_tokens: Count = 0
    prefill_worker: Label = ""
    decode_worker: Label = ""
    attempts: Count = 0
    migrations: Count = 0
    handoff: HandoffReport | None = None
    submission: Count = 0  # Of the `Submit` that this answers


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker will connect, with this CURVE key; the key is empty on an open link."""

    worker: Label
    public_key: Label = ""


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker has ended or is lost."""

    worker: Label


@dataclass(frozen=True, slots=True)
class ServingPools:
    """Whether a worker takes prompts, and whether one decodes; a mixed worker does both, a drained one neither.

    It follows `GatewayRegistered` and every change. A router that has just started sends it when both are true or the
    workers have had `router.no_workers_grace_s` to come back.
    """

    prefill: bool = False
    decode: bool = False

    @property
    def missing(self) -> str:
        """The role without a worker; empty if there is none."""
        return "" if self.prefill and self.decode else "decode" if self.prefill else "prefill"


GatewayMessage = RegisterGateway | Submit | StopRequest | EmittedTokens | GatewayLoad | Goodbye
ToGateway = (
    GatewayRegistered | Reregister | Placed | AskEmitted | RequestEnded | WorkerJoined | WorkerLeft | ServingPools
)

# Between workers and gateways


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A worker has connected, again or for the first time, or could not send tokens: they may have been lost.

    It sends no token to this gateway before the `AttachStreams` that answers.
    """

    worker: Label
    incarnation: Label


@dataclass(slots=True)  # Not frozen: it is constructed per token, and frozen takes three times as long
class TokenOutput:
    """One token of one request. `index` counts output tokens from 0."""

    request_id: str
    index: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish: FinishReason | None = None
    cached_tokens: int = 0  # In the first token: prompt tokens from the prefix cache


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The tokens of one step for one gateway."""

    tokens: tuple[TokenOutput, ...]


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """A live stream and the index of the token that it needs next.

    A worker may keep an ended sequence of another request that had the same id; `digest` distinguishes them.
    """

    request_id: Id
    next_index: Count
    digest: Annotated[bytes, Length(DIGEST_BYTES)] = b""  # `Request.digest`; empty: whichever has this id


@dataclass(frozen=True, slots=True)
class AttachStreams:
    """Send the tokens of these streams from these indexes on. The worker ignores those that it does not run.

    It is the answer to `LinkUp`. Later ones ask for tokens that did not arrive.
    """

    streams: Annotated[tuple[StreamPosition, ...], Length(MAX_IDS)]


TokenMessage = LinkUp | StepOutput | PromptLogprobs
"""From a worker to a gateway."""
