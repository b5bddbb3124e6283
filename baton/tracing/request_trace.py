"""The place of a request in a trace, and spans with times of a process's own clock. Needs no library of traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.protocol.trace_context import TraceContext

AttributeValue = str | int | float | bool | Sequence[str]


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """The trace of one request and its gateway's span in it, decided when the request arrives."""

    operation: str  # OpenTelemetry's gen_ai.operation.name: "chat" or "text_completion"
    trace_id: int
    span_id: int
    parent_id: int | None  # None: its span is the root
    remote: bool  # The parent is the client's span
    sampled: bool
    state: Any = None  # The client's `tracestate`, which the spans keep

    @property
    def context(self) -> TraceContext | None:
        """What the router needs of it; None: it is not sampled."""
        if not self.sampled:
            return None
        return TraceContext(self.trace_id.to_bytes(16, "big"), self.span_id.to_bytes(8, "big"))

    @property
    def name(self) -> str:
        """The trace's id, as logs and tools show it."""
        return f"{self.trace_id:032x}"


@dataclass(frozen=True, slots=True)
class Span:
    """A span that has ended; `error` (a sentence) marks a failure."""

    name: str
    start_s: float
    end_s: float
    attributes: Mapping[str, AttributeValue]
    events: Sequence[tuple[str, float]] = field(default_factory=tuple)
    error: str = ""
    server: bool = False  # It answers a client
