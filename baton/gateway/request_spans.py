"""The spans of requests at a gateway: the server's span, with OpenTelemetry's attributes for generative AI."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from baton.gateway.ended_request import EndedRequest
from baton.protocol.errors import BatonError, Cancelled
from baton.protocol.request import SamplingParams
from baton.tracing.export import SpanExport
from baton.tracing.request_trace import AttributeValue, RequestTrace, Span
from baton.tracing.w3c import parent_of

PROVIDER = "baton"


@dataclass(eq=False)
class RequestSpans:
    """Decides which requests are traced, and makes their spans when they have ended."""

    export: SpanExport
    model: str
    sample: float  # Share of the requests without a caller's trace

    def begin(self, headers: Iterable[tuple[str, str]], operation: str) -> RequestTrace:
        """A request has arrived with these headers: it continues its caller's trace, or begins one."""
        parent, span_id = parent_of(headers), self.export.new_span_id()
        if parent is not None:
            sampled, state = parent.trace_flags.sampled, parent.trace_state
            return RequestTrace(operation, parent.trace_id, span_id, parent.span_id, True, sampled, state)
        random = self.export.random
        sampled = random.random() < self.sample
        return RequestTrace(operation, random.getrandbits(128) or 1, span_id, None, False, sampled)

    def child(self, trace: RequestTrace) -> RequestTrace:
        """The trace of one of several sequences of a body."""
        return replace(trace, span_id=self.export.new_span_id(), parent_id=trace.span_id, remote=False)

    def on_ended(self, ended: EndedRequest) -> None:
        """Make the span of a request."""
        trace, request, end = ended.trace, ended.request, ended.end
        if trace is None or not trace.sampled:
            return
        times = end.latency
        attributes = self._common(trace, request.request_id)
        attributes |= _of_sampling(request.sampling)
        attributes |= {
            "baton.api": ended.api,
            "gen_ai.usage.input_tokens": end.prompt_tokens,
            "gen_ai.usage.output_tokens": end.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": end.cached_tokens,
            "baton.prefill_worker": end.prefill_worker,
            "baton.decode_worker": end.decode_worker,
            "baton.attempts": end.attempts,
            "baton.migrations": end.migrations,
            "baton.resumed": ended.resumed,
        }
        if request.tenant:
            attributes["baton.tenant"] = request.tenant
        if end.reason is not None:
            attributes["gen_ai.response.finish_reasons"] = [end.reason.value]
        events = []
        if times.first_token_s is not None:
            attributes["baton.ttft_s"] = times.first_token_s - times.arrival_s
            events = [("first token", times.first_token_s)]
        if times.tpot_s is not None:
            attributes["baton.tpot_s"] = times.tpot_s
        self._add(trace, times.arrival_s, ended.ended_s, attributes, events, end.error)

    def on_body_ended(
        self, trace: RequestTrace, request_id: str, count: int, times_s: tuple[float, float], error: BatonError | None
    ) -> None:
        """Make the span over the spans of a body's `count` sequences, from its arrival to its end."""
        if trace.sampled:
            attributes = {**self._common(trace, request_id), "baton.sequences": count}
            self._add(trace, *times_s, attributes, [], error)

    def _common(self, trace: RequestTrace, request_id: str) -> dict[str, AttributeValue]:
        return {
            "baton.request_id": request_id,
            "gen_ai.operation.name": trace.operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": self.model,
            "gen_ai.response.model": self.model,
            "gen_ai.response.id": request_id,
        }

    def _add(
        self,
        trace: RequestTrace,
        start_s: float,
        end_s: float,
        attributes: dict[str, AttributeValue],
        events: list[tuple[str, float]],
        error: BatonError | None,
    ) -> None:
        if error is not None:
            attributes["error.type"] = type(error).__name__
        # A client that has left is no failure of the server
        failure = error.message if error is not None and not isinstance(error, Cancelled) else ""
        span = Span(f"{trace.operation} {self.model}", start_s, end_s, attributes, events, failure, server=True)
        wall_ns = self.export.wall_ns()
        self.export.add(span, wall_ns, trace.trace_id, trace.span_id, trace.parent_id, trace.remote, trace.state)


def _of_sampling(sampling: SamplingParams) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
    }
    if sampling.top_k:
        attributes["gen_ai.request.top_k"] = float(sampling.top_k)
    if sampling.frequency_penalty:
        attributes["gen_ai.request.frequency_penalty"] = sampling.frequency_penalty
    if sampling.presence_penalty:
        attributes["gen_ai.request.presence_penalty"] = sampling.presence_penalty
    if sampling.seed is not None and not sampling.greedy:
        attributes["gen_ai.request.seed"] = sampling.seed
    return attributes
