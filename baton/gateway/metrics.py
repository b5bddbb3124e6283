"""A gateway's metrics: what it counts of requests, and what a scrape reads of its session."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from baton import __version__
from baton.gateway.core.commands import StreamEnd
from baton.gateway.driver import GatewayDriver
from baton.gateway.ended_request import EndedRequest, RefusedRequest
from baton.gateway.subscription import Subscription
from baton.metrics import gateway_table as table
from baton.metrics.metric import Metric
from baton.metrics.values import Exemplar, Family, Recorder
from baton.protocol.errors import Cancelled, DeadlineExceeded
from baton.tracing.request_trace import RequestTrace

ABORTS = (Cancelled, DeadlineExceeded)  # The client left, or did not want to wait longer


@dataclass(eq=False)
class GatewayMetrics:
    """Listens to the driver. `by_tenant`: tenants are those of the token file, and so bounded."""

    driver: GatewayDriver
    model_name: str
    by_tenant: bool
    wall_clock: Callable[[], float] = time.time
    recorder: Recorder = field(default_factory=Recorder)

    def __post_init__(self) -> None:
        self.driver.on_first_token.append(self._on_first_token)
        self.driver.on_ended.append(self._on_ended)
        self.driver.on_refused.append(self._on_refused)
        recorder, model = self.recorder, self.model_name
        of_requests = (metric for metric in table.GATEWAY_METRICS if metric.labels == table.MODEL)
        read = (table.INTER_TOKEN, table.GENERATION_TOKENS)
        recorder.begin(*(metric for metric in of_requests if metric not in read), labels=[(model,)])
        recorder.begin(table.SUCCESS, labels=[(model, reason) for reason in ("stop", "length", "abort", "error")])
        recorder.begin(table.RESUMED)

    def read(self) -> list[Family]:
        """All metrics now."""
        driver, session = self.driver, self.driver.session
        workers, model = session.workers, (self.model_name,)
        dropped = [(("invalid",), float(workers.invalid_tokens)), (("refused",), float(workers.refused_tokens))]
        return [
            *self.recorder.families(),
            Family(table.INTER_TOKEN, [(model, session.token_gaps.copy())]),
            Family(table.GENERATION_TOKENS, [(model, session.num_tokens)]),
            Family(table.DROPPED_TOKENS, dropped),
            Family(table.LOOP_LAG, [((), driver.loop_lag.copy())]),
            Family(table.BUILD, [((__version__, session.info.name), 1)]),
            *(
                Family(metric, [((), value)])
                for metric, value in (
                    (table.OPENED, session.num_requests),
                    (table.STREAMS, len(session.streams)),
                    (table.STREAM_GAPS, workers.num_gaps),
                    (table.WAITING_BYTES, driver.waiting_bytes()),
                    (table.ROUTER_CONNECTED, int(driver.registered.is_set())),
                    (table.READY, int(driver.ready)),
                    (table.KNOWN_WORKERS, workers.num_named),
                )
            ),
        ]

    def _on_first_token(self, subscription: Subscription) -> None:
        request = subscription.request
        ttft_s = self.driver.clock() - request.arrival_s
        self._observe(table.FIRST_TOKEN, ttft_s, exemplar_labels(request.request_id, subscription.trace))
        self.recorder.count(table.PROMPT_TOKENS, self.model_name, by=len(request.prompt))

    def _on_refused(self, refused: RefusedRequest) -> None:
        self.recorder.count(table.REJECTED, refused.api, type(refused.error).__name__)

    def _on_ended(self, ended: EndedRequest) -> None:
        end, recorder, model = ended.end, self.recorder, self.model_name
        recorder.count(table.REQUESTS, ended.api, end.reason.value if end.reason else type(end.error).__name__)
        recorder.count(table.SUCCESS, model, finished_reason(end))
        if ended.resumed:
            recorder.count(table.RESUMED)
        tenant = ended.request.tenant
        if self.by_tenant:
            recorder.count(table.TENANT_REQUESTS, tenant)
            recorder.count(table.TENANT_PROMPT_TOKENS, tenant, by=end.prompt_tokens)
            recorder.count(table.TENANT_OUTPUT_TOKENS, tenant, by=end.output_tokens)
        self._observe_times(ended)
        self._observe_tokens(ended)

    def _observe_times(self, ended: EndedRequest) -> None:
        """The phases that the request has been through."""
        times, labels = ended.end.latency, exemplar_labels(ended.request.request_id, ended.trace)
        routed_s, first_s, last_s = times.routed_s, times.first_token_s, times.last_token_s
        if routed_s is not None:
            self._observe(table.QUEUE_TIME, times.queue_s, labels)
        if routed_s is not None and first_s is not None:
            self._observe(table.PREFILL_TIME, max(0.0, first_s - routed_s), labels)
        if routed_s is not None and last_s is not None:
            self._observe(table.INFERENCE_TIME, max(0.0, last_s - routed_s), labels)
        if first_s is not None and last_s is not None:
            self._observe(table.DECODE_TIME, last_s - first_s, labels)
        if times.tpot_s is not None:
            self._observe(table.TIME_PER_TOKEN, times.tpot_s, labels)
        if ended.end.error is None:
            self._observe(table.END_TO_END, times.total_s, labels)

    def _observe_tokens(self, ended: EndedRequest) -> None:
        recorder, end, model = self.recorder, ended.end, self.model_name
        recorder.observe(table.REQUEST_MAX_TOKENS, ended.request.sampling.max_tokens, model)
        recorder.observe(table.REQUEST_GENERATION, end.output_tokens, model)
        recorder.observe(table.REQUEST_MAX_GENERATION, end.output_tokens, model)
        recorder.observe(table.REQUEST_PROMPT, end.prompt_tokens, model)
        if end.latency.first_token_s is not None:
            recorder.observe(table.REQUEST_PREFILL, end.prompt_tokens - end.cached_tokens, model)
            recorder.count(table.CACHE_QUERIES, model, by=end.prompt_tokens)
            recorder.count(table.CACHE_HITS, model, by=end.cached_tokens)
            recorder.count(table.CACHED_TOKENS, model, by=end.cached_tokens)

    def _observe(self, metric: Metric, seconds: float, labels: tuple[tuple[str, str], ...]) -> None:
        exemplar = Exemplar(labels, seconds, self.wall_clock())
        self.recorder.observe(metric, seconds, self.model_name, exemplar=exemplar)


def exemplar_labels(request_id: str, trace: RequestTrace | None) -> tuple[tuple[str, str], ...]:
    """What finds a request in logs and, if it is sampled, in traces."""
    traced = (("trace_id", trace.name),) if trace is not None and trace.sampled else ()
    return ("request_id", request_id), *traced


def finished_reason(end: StreamEnd) -> str:
    """The end of a request, in vLLM's words."""
    if end.reason is not None:
        return end.reason.value
    return "abort" if isinstance(end.error, ABORTS) else "error"
