"""The end of a request, as the explanations and the log get it, and its latency as the router saw it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from baton.protocol.errors import BatonError, Overloaded
from baton.protocol.gateway_messages import RequestEnded
from baton.protocol.handoff import HandoffReport
from baton.protocol.request import FinishReason


@dataclass(slots=True)
class Latency:
    """Moments of one request, in seconds on one clock; None until they happen.

    The router receives no tokens: it sees the first one when the prompt is computed, and the last one when the
    sequence has ended.
    """

    arrival_s: float
    routed_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    num_tokens: int = 0  # computed since its arrival

    @property
    def queue_s(self) -> float:
        """From arrival to the routing decision."""
        return 0.0 if self.routed_s is None else self.routed_s - self.arrival_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; undefined for fewer than two tokens."""
        if self.first_token_s is None or self.last_token_s is None or self.num_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.num_tokens - 1)

    @property
    def total_s(self) -> float:
        """From arrival to the last token."""
        return 0.0 if self.last_token_s is None else self.last_token_s - self.arrival_s


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, by linear interpolation; values must not be empty."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a request: `reason` for an answer, `error` for a failure."""

    request_id: str
    gateway: str
    reason: FinishReason | None
    error: BatonError | None
    prompt_tokens: int
    output_tokens: int
    latency: Latency
    prefill_worker: str
    decode_worker: str
    attempts: int
    migrations: int
    handoff: HandoffReport | None

    @property
    def message(self) -> RequestEnded:
        """The message for its gateway."""
        ended = RequestEnded(self.request_id) if self.error is None else failure(self.request_id, self.error)
        return replace(
            ended,
            reason=self.reason,
            num_tokens=self.output_tokens,
            prefill_worker=self.prefill_worker,
            decode_worker=self.decode_worker,
            attempts=self.attempts,
            migrations=self.migrations,
            handoff=self.handoff,
        )


def failure(request_id: str, error: BatonError) -> RequestEnded:
    """The end of a request by an error, for its gateway."""
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else None
    return RequestEnded(request_id, None, type(error).__name__, error.message, retry_after_s)
