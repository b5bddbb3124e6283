"""The end of a request, as the explanations and the log get it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from baton.protocol.errors import BatonError, Cancelled, Overloaded
from baton.protocol.gateway_messages import RequestEnded
from baton.protocol.handoff import HandoffReport
from baton.protocol.latency import Latency
from baton.protocol.request import FinishReason
from baton.router.core.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a request: `reason` for an answer, `error` for a failure."""

    request_id: str
    gateway: str
    reason: FinishReason | None
    error: BatonError | None
    prompt_tokens: int
    output_tokens: int
    latency: Latency  # as the router saw it: the first token when the prompt was computed, the last one at the end
    prefill_worker: str
    decode_worker: str
    attempts: int
    migrations: int
    handoff: HandoffReport | None
    submission: int  # of the gateway
    handoffs_failed: int = 0
    timeline: Timeline | None = None  # of a sampled request

    @property
    def message(self) -> RequestEnded:
        """The message for its gateway."""
        ended = RequestEnded(self.request_id)
        if self.error is not None:
            ended = failure(self.request_id, self.error, self.submission)
        return replace(
            ended,
            reason=self.reason,
            num_tokens=self.output_tokens,
            prefill_worker=self.prefill_worker,
            decode_worker=self.decode_worker,
            attempts=self.attempts,
            migrations=self.migrations,
            handoff=self.handoff,
            submission=self.submission,
        )


def failure(request_id: str, error: BatonError, submission: int) -> RequestEnded:
    """The end of a request by an error, for the gateway that submitted it."""
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else None
    return RequestEnded(request_id, None, type(error).__name__, error.message, retry_after_s, submission=submission)


def taken_over(request_id: str) -> Cancelled:
    """The error for the gateway of a client that is not the latest one to ask for a stream."""
    return Cancelled(f"Another client has taken over the stream of {request_id!r}.")
