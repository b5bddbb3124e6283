"""The spans of a request's phases at the router, below its gateway's span."""

from __future__ import annotations

from dataclasses import dataclass

from baton.router.core.completion import Completion
from baton.tracing.export import SpanExport
from baton.tracing.request_trace import Span


@dataclass(eq=False)
class PhaseSpans:
    """Makes the spans of a sampled request when it has ended."""

    export: SpanExport

    def on_completed(self, completion: Completion) -> None:
        """Make a span for each recorded phase."""
        timeline = completion.timeline
        if timeline is None:
            return
        trace_id = int.from_bytes(timeline.trace.trace_id, "big")
        parent_id = int.from_bytes(timeline.trace.span_id, "big")
        wall_ns = self.export.wall_ns()
        for phase in timeline.phases:
            attributes = {"baton.request_id": completion.request_id, **phase.attributes}
            span = Span(phase.name, phase.start_s, phase.end_s, attributes, phase.events, phase.error)
            self.export.add(span, wall_ns, trace_id, self.export.new_span_id(), parent_id, remote=True)
