"""The router's metrics: what it counts when a request or an operation ends, and what a scrape reads of its core."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from baton import __version__
from baton.metrics import router_table as table
from baton.metrics.gateway_table import BUILD, LOOP_LAG
from baton.metrics.metric import Metric
from baton.metrics.values import Exemplar, Family, Recorder
from baton.protocol.link_keys import ROUTER
from baton.protocol.request import FinishReason
from baton.protocol.worker import RoleName
from baton.router.core.breaker import BREAKER_S
from baton.router.core.completion import Completion
from baton.router.core.live_request import Phase
from baton.router.core.operation import Operation
from baton.router.driver import Driver
from baton.router.worker_metrics import worker_families

SIDES = ("over", "under")


@dataclass(eq=False)
class RouterMetrics:
    """Listens to the driver."""

    driver: Driver
    model_name: str
    wall_clock: Callable[[], float] = time.time
    recorder: Recorder = field(default_factory=Recorder)

    def __post_init__(self) -> None:
        self.driver.on_completed.append(self._on_completed)
        self.driver.on_operation_ended.append(self._on_operation_ended)
        recorder = self.recorder
        recorder.begin(table.ATTEMPTS, table.MIGRATIONS, table.LOCAL, table.DESCRIPTORS, table.CACHED_PAGES)
        recorder.begin(table.HANDOFF_BYTES, table.EXPOSED_TIME)
        recorder.begin(table.TRANSFER_TIME, table.TRANSFER_FAILURES, labels=[(self.model_name,)])
        errors = (table.TTFT_ERROR, table.TPOT_ERROR, table.LENGTH_ERROR)
        recorder.begin(*errors, labels=[(side,) for side in SIDES])

    def read(self) -> list[Family]:
        """All metrics now. It takes a few milliseconds with a thousand workers or ten thousand live requests."""
        driver, core, now = self.driver, self.driver.core, self.driver.clock()
        refused = core.requests.refusals.by_cause
        phases = Counter(live.phase for live in core.requests.live.values())
        roles = Counter(view.role for view in core.state.workers.values())
        return [
            *self.recorder.families(),
            *worker_families(core.state.workers.values(), core.queued, self.model_name, now),
            Family(table.LIVE, [((phase.value,), phases[phase]) for phase in Phase if phase is not Phase.CLOSED]),
            Family(table.POOL, [((role.value,), roles[role]) for role in RoleName]),
            Family(table.REFUSED, [((cause,), count) for cause, count in sorted(refused.items())]),
            Family(table.UNCLAIMED, self._unclaimed()),
            Family(table.DECISION, [((), driver.decisions.copy())]),
            Family(LOOP_LAG, [((), driver.loop_lag.copy())]),
            Family(BUILD, [((__version__, ROUTER), 1)]),
            *(Family(metric, [((), value)]) for metric, value in self._plain(now)),
        ]

    def _plain(self, now: float) -> Sequence[tuple[Metric, float]]:
        """The metrics without labels."""
        core = self.driver.core
        membership, state = core.membership, core.state
        oldest_s = min((item.arrival_s for item in core.dispatch.waiting), default=now)
        lost = membership.breaker.lost_since(now - BREAKER_S)
        return (
            (table.QUEUED, core.queued),
            (table.QUEUE_AGE, max(0.0, now - oldest_s)),
            (table.GATEWAYS, len(core.gateways)),
            (table.CONTINUED, core.adoption.continued),
            (table.UNANSWERED, len(membership.transfers.unanswered())),
            (table.FENCED, membership.transfers.num_fenced),
            (table.BROKEN_LINKS, membership.transfers.num_broken),
            (table.CUT_LINKS, sum(map(len, state.cut.values()))),
            (table.BREAKER, sum(membership.breaker.tripped(name, now) and name in state.cordoned for name in lost)),
            (table.LOST, len(lost)),
            (table.UNEXPECTED, core.requests.unexpected.total()),
        )

    def _unclaimed(self) -> list[tuple[tuple[str, ...], float]]:
        core = self.driver.core
        of_gateways = sum(live.unclaimed_since_s is not None for live in core.requests.live.values())
        return [(("router",), len(core.adoption.orphans)), (("gateway",), of_gateways)]

    def _on_operation_ended(self, operation: Operation) -> None:
        kind = type(operation.spec).__name__.lower()
        self.recorder.count(table.OPERATIONS, kind, operation.state.value)

    def _on_completed(self, completion: Completion) -> None:
        recorder, error, handoff = self.recorder, completion.error, completion.handoff
        recorder.count(table.COMPLETED, completion.reason.value if completion.reason else type(error).__name__)
        recorder.count(table.ATTEMPTS, by=max(0, completion.attempts - 1))
        recorder.count(table.MIGRATIONS, by=completion.migrations)
        recorder.count(table.TRANSFER_FAILURES, self.model_name, by=completion.handoffs_failed)
        if handoff is not None:
            recorder.count(table.DESCRIPTORS, by=handoff.pages_sent)
            recorder.count(table.CACHED_PAGES, by=handoff.pages_cached)
            self._observe(table.HANDOFF_BYTES, handoff.bytes_sent, completion)
            self._observe(table.EXPOSED_TIME, handoff.exposed_s, completion)
            self._observe(table.TRANSFER_TIME, handoff.transfer_s, completion, self.model_name)
        elif error is None and completion.prefill_worker == completion.decode_worker:
            recorder.count(table.LOCAL)
        if error is None and completion.attempts == 1:
            self._compare(completion)

    def _compare(self, completion: Completion) -> None:
        """Count the errors of the predictions for an answer that needed one attempt."""
        explanation = self.driver.core.explanations.get(completion.request_id)
        if explanation is None:
            return
        times, candidates = completion.latency, explanation.decision.candidates
        if candidates and times.routed_s is not None and times.first_token_s is not None:
            self._miss(table.TTFT_ERROR, times.first_token_s - times.routed_s, candidates[0].ttft_s, completion)
        if candidates and times.tpot_s is not None:
            self._miss(table.TPOT_ERROR, times.tpot_s, candidates[0].tpot_s, completion)
        if completion.reason is FinishReason.STOP:
            self._miss(table.LENGTH_ERROR, completion.output_tokens, explanation.output_tokens_p50, completion)

    def _miss(self, metric: Metric, observed: float, predicted: float, completion: Completion) -> None:
        self._observe(metric, abs(observed - predicted), completion, SIDES[observed < predicted])

    def _observe(self, metric: Metric, value: float, completion: Completion, *labels: str) -> None:
        exemplar = Exemplar((("request_id", completion.request_id),), value, self.wall_clock())
        self.recorder.observe(metric, value, *labels, exemplar=exemplar)
