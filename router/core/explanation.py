"""Why each request was placed where it was, and its outcome: the newest few thousand."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from baton.protocol.errors import Cancelled
from baton.protocol.latency import Latency
from baton.router.core.completion import Completion
from baton.router.policy.output_length import LengthDistribution
from baton.router.policy.placement import RoutingDecision

MAX_EXPLANATIONS = 4096


@dataclass(slots=True, eq=False)
class Explanation:
    """The latest decision for one request, and its outcome."""

    policy: str
    decision: RoutingDecision
    output: LengthDistribution  # as predicted
    decode_worker: str = ""
    latency: Latency | None = None
    output_tokens: int | None = None
    state: str = "running"

    @property
    def output_tokens_p50(self) -> int:
        """The predicted median of its output's length."""
        return self.output.median

    @property
    def output_tokens_p90(self) -> int:
        """The length that its output was predicted to stay within with 90 % probability."""
        return self.output.quantile(0.9)


@dataclass(eq=False)
class Explanations:
    """By request id, oldest forgotten first; all are counted."""

    finished: int = 0
    failed: int = 0
    cancelled: int = 0  # by their clients
    _kept: OrderedDict[str, Explanation] = field(default_factory=OrderedDict)

    def decided(self, request_id: str, policy: str, decision: RoutingDecision, output: LengthDistribution) -> None:
        """The request was placed, possibly again."""
        self._kept[request_id] = Explanation(policy, decision, output)
        self._kept.move_to_end(request_id)
        while len(self._kept) > MAX_EXPLANATIONS:
            self._kept.popitem(last=False)

    def ended(self, completion: Completion) -> None:
        """The request is over."""
        error = completion.error
        self.finished += error is None
        self.cancelled += isinstance(error, Cancelled)
        self.failed += error is not None and not isinstance(error, Cancelled)
        explanation = self._kept.get(completion.request_id)
        if explanation is not None:
            explanation.latency = completion.latency
            explanation.decode_worker = completion.decode_worker
            explanation.output_tokens = completion.output_tokens
            explanation.state = "finished" if completion.error is None else completion.error.message

    def get(self, request_id: str) -> Explanation | None:
        return self._kept.get(request_id)
