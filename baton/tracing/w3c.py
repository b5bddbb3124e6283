"""The caller's trace in the headers of W3C Trace Context, of HTTP requests and gRPC metadata."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.trace import SpanContext, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

MAX_PARENT_CHARACTERS = 128  # Version 00 has 55
MAX_STATE_CHARACTERS = 512  # That W3C wants to be kept at least
_PROPAGATOR = TraceContextTextMapPropagator()


def parent_of(headers: Iterable[tuple[str, str]]) -> SpanContext | None:
    """The caller's span; None without one, and for an invalid one. Names are in lower case.

    An invalid or too long `tracestate` is ignored, and so is one without a valid `traceparent`.
    """
    parents, states = list[str](), list[str]()
    for name, value in headers:
        if name == "traceparent":
            parents.append(value)
        elif name == "tracestate":
            states.append(value)
    if len(parents) != 1 or len(parents[0]) > MAX_PARENT_CHARACTERS:
        return None
    carrier = {"traceparent": parents}
    if states and sum(map(len, states)) + len(states) - 1 <= MAX_STATE_CHARACTERS:
        carrier["tracestate"] = states
    span = get_current_span(_PROPAGATOR.extract(carrier)).get_span_context()
    return span if span.is_valid else None
