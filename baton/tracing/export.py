"""Sends spans to an OTLP collector, from a thread with a bounded queue: a dead collector costs spans, no request."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from baton import __version__
from baton.config.schema import TracingSection
from baton.tracing.request_trace import Span

TRACES_PATH = "/v1/traces"
FLUSH_S = 3.0  # That a process which stops waits for the collector
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class SpanExport:
    """Spans of one process on their way to the collector.

    The SDK's variables for headers, certificates, compression, time-outs, the queue and the resource apply.
    """

    def __init__(
        self,
        section: TracingSection,
        process: str,
        clock: Callable[[], float] = time.monotonic,
        exporter: SpanExporter | None = None,
    ) -> None:
        self._clock = clock
        self._exporter = exporter or OTLPSpanExporter(traces_url(section.endpoint))
        self._processor = BatchSpanProcessor(self._exporter)
        self._scope = InstrumentationScope("baton", __version__)
        self._resource = Resource.create(
            {"service.name": section.service_name, "service.instance.id": process, "service.version": __version__}
        )
        self.random = random.Random()  # Of ids; a process that is forked later must not share them

    def new_span_id(self) -> int:
        """The id of a new span, which is not 0."""
        return self.random.getrandbits(64) or 1

    def wall_ns(self) -> int:
        """What the wall clock is ahead of the process's own: one value for all spans of a request keeps their order."""
        return time.time_ns() - int(self._clock() * 1e9)

    def add(
        self,
        span: Span,
        wall_ns: int,
        trace_id: int,
        span_id: int,
        parent_id: int | None,
        remote: bool = False,
        state: object = None,
    ) -> None:
        """Queue a span of a sampled trace; if the queue is full, its oldest span is dropped. `remote`: the parent is
        of another process."""
        trace_state = state if isinstance(state, TraceState) else None
        parent = None
        if parent_id is not None:
            parent = SpanContext(trace_id, parent_id, remote, _SAMPLED, trace_state)
        self._processor.on_end(
            ReadableSpan(
                span.name,
                SpanContext(trace_id, span_id, False, _SAMPLED, trace_state),
                parent,
                self._resource,
                span.attributes,
                [Event(name, {}, wall_ns + int(at_s * 1e9)) for name, at_s in span.events],
                kind=SpanKind.SERVER if span.server else SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
                start_time=wall_ns + int(span.start_s * 1e9),
                end_time=wall_ns + int(span.end_s * 1e9),
                instrumentation_scope=self._scope,
            )
        )

    async def close(self) -> None:
        """Send what is queued, for at most FLUSH_S."""
        flush = threading.Thread(target=self._processor.shutdown, name="flush-spans", daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, FLUSH_S)
        if flush.is_alive():
            self._exporter.shutdown()  # Ends its retries


def traces_url(endpoint: str) -> str:
    """The URL for spans: a collector's address gets the standard path."""
    return endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + TRACES_PATH
