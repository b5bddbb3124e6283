"""Sums over the requests since the router started, in constant time per request. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton.router.core.completion import Completion
from baton.router.policy.placement import RoutingDecision


@dataclass(slots=True)
class Totals:
    """Prefix hits are counted at placements, everything else at the ends of answers."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of these, as the router knew the caches
    handoffs: int = 0
    handoff_bytes: int = 0
    served_locally: int = 0  # answers whose prompt was computed where they decoded
    predicted: int = 0  # answers with a predicted time to the first token
    prediction_error_s: float = 0.0  # summed over them, without signs

    def placed(self, num_tokens: int, cached_tokens: int) -> None:
        """A request of so many tokens goes to a worker that has the first of them in its cache."""
        self.prompt_tokens += num_tokens
        self.cached_tokens += cached_tokens

    def ended(self, completion: Completion, decision: RoutingDecision | None) -> None:
        """A request is over; `decision` is its latest, if that is still kept."""
        if completion.error is not None:
            return
        if completion.handoff is not None:
            self.handoffs += 1
            self.handoff_bytes += completion.handoff.bytes_sent
        self.served_locally += completion.prefill_worker == completion.decode_worker
        ttft_s = completion.latency.ttft_s
        if decision is not None and decision.candidates and completion.attempts == 1 and ttft_s is not None:
            self.predicted += 1
            self.prediction_error_s += abs(ttft_s - completion.latency.queue_s - decision.candidates[0].ttft_s)
