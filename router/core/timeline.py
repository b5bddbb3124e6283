"""The phases of one request as its trace shows them, with times of the router's clock. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.protocol.trace_context import TraceContext

MAX_PHASES = 64  # Of one request; a request that starts over so often has the first ones recorded
AttributeValue = str | int | float | bool


@dataclass(slots=True, eq=False)
class RecordedPhase:
    """One phase; `error` says why it was cut short."""

    name: str
    start_s: float
    end_s: float
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    events: list[tuple[str, float]] = field(default_factory=list)
    error: str = ""


@dataclass(slots=True, eq=False)
class Timeline:
    """The recorded phases of a sampled request, in the order in which they began; `phases.observe` keeps it."""

    trace: TraceContext
    decided_by: str = ""  # The policy of the latest decision
    phases: list[RecordedPhase] = field(default_factory=list)
    running: dict[str, RecordedPhase] = field(default_factory=dict)  # By what runs, see `phases.observe`

    def begin(self, key: str, phase: RecordedPhase) -> None:
        """A phase has begun; beyond MAX_PHASES it is not kept."""
        self.running[key] = phase
        if len(self.phases) < MAX_PHASES:
            self.phases.append(phase)


def opened(trace: TraceContext | None, now: float) -> Timeline | None:
    """The timeline of a request that enters the queue; None: it is not sampled."""
    if trace is None:
        return None
    timeline = Timeline(trace)
    timeline.begin("queue", RecordedPhase("queue", now, now))
    return timeline
