"""Why each request was placed where it was, and its outcome: the newest few thousand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from baton.protocol.errors import Cancelled
from baton.protocol.latency import Latency
from baton.router.core.completion import Completion
from baton.router.core.totals import Totals
from baton.router.policy.output_length import LengthDistribution
from baton.router.policy.placement import RoutingDecision

MAX_EXPLANATIONS = 4096


@dataclass(slots=True, eq=False)
class Explanation:
    """The latest decision for one request, and its outcome."""

    policy: str
    decision: RoutingDecision
    output: LengthDistribution  # as predicted
    completion: Completion | None = None  # None while it runs
    ended_s: float | None = None

    @property
    def latency(self) -> Latency | None:
        return self.completion.latency if self.completion is not None else None

    @property
    def decode_worker(self) -> str:
        return self.completion.decode_worker if self.completion is not None else self.decision.decode or ""

    @property
    def output_tokens(self) -> int | None:
        return self.completion.output_tokens if self.completion is not None else None

    @property
    def state(self) -> str:
        if self.completion is None:
            return "running"
        return "finished" if self.completion.error is None else self.completion.error.message

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
    totals: Totals = field(default_factory=Totals)
    _kept: OrderedDict[str, Explanation] = field(default_factory=OrderedDict)

    def decided(self, request_id: str, policy: str, decision: RoutingDecision, output: LengthDistribution) -> None:
        """The request was placed, possibly again."""
        self._kept[request_id] = Explanation(policy, decision, output)
        self._kept.move_to_end(request_id)
        while len(self._kept) > MAX_EXPLANATIONS:
            self._kept.popitem(last=False)

    def ended(self, completion: Completion, now: float) -> None:
        """The request is over."""
        error = completion.error
        self.finished += error is None
        self.cancelled += isinstance(error, Cancelled)
        self.failed += error is not None and not isinstance(error, Cancelled)
        explanation = self._kept.get(completion.request_id)
        self.totals.ended(completion, explanation.decision if explanation is not None else None)
        if explanation is not None:
            explanation.completion, explanation.ended_s = completion, now

    def get(self, request_id: str) -> Explanation | None:
        """The latest decision for a request and its outcome, if they are still kept."""
        return self._kept.get(request_id)

    def newest(self) -> Iterator[tuple[str, Explanation]]:
        """Request ids and explanations, the latest decision first."""
        return reversed(self._kept.items())
