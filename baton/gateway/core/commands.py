"""What a gateway's shell performs for its session."""

from __future__ import annotations

from dataclasses import dataclass

from baton.gateway.core.stream import TextToken
from baton.protocol.errors import BatonError
from baton.protocol.gateway_messages import AttachStreams, GatewayMessage
from baton.protocol.handoff import HandoffReport
from baton.protocol.latency import Latency
from baton.protocol.prompt_logprobs import PromptLogprobs
from baton.protocol.request import FinishReason


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The end of a stream: `reason` for an answer, `error` for a failure. The latency is the gateway's."""

    request_id: str
    reason: FinishReason | None
    error: BatonError | None
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    trailing_text: str
    latency: Latency
    prefill_worker: str = ""
    decode_worker: str = ""
    attempts: int = 0
    migrations: int = 0
    handoff: HandoffReport | None = None


@dataclass(frozen=True, slots=True)
class SendToRouter:
    """Messages for the router keep their order."""

    message: GatewayMessage


@dataclass(frozen=True, slots=True)
class SendToWorker:
    """A message that is lost if the worker is not connected: it asks again with `LinkUp`."""

    worker: str
    message: AttachStreams


@dataclass(slots=True)  # Not frozen: it is constructed per token
class ShowTokens:
    """Tokens for the reader of a stream, in order; the reader gets each index once."""

    request_id: str
    tokens: list[TextToken]


@dataclass(frozen=True, slots=True)
class ShowPrompt:
    """Log-probabilities of a stream's prompt, in order; all come before its first token."""

    logprobs: PromptLogprobs


@dataclass(frozen=True, slots=True)
class EndStream:
    """The last command of a stream."""

    end: StreamEnd


@dataclass(frozen=True, slots=True)
class AcceptWorker:
    """Let a worker connect with this CURVE key; the key is empty on an open link."""

    worker: str
    public_key: str


@dataclass(frozen=True, slots=True)
class ForgetWorker:
    """Close a worker's link and accept it no more."""

    worker: str


Command = SendToRouter | SendToWorker | ShowTokens | ShowPrompt | EndStream | AcceptWorker | ForgetWorker
