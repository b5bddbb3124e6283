"""A request that its gateway is done with, as metrics, traces and the access log get it."""

from __future__ import annotations

from dataclasses import dataclass

from baton.gateway.core.commands import StreamEnd
from baton.protocol.errors import BatonError
from baton.protocol.request import Request
from baton.tracing.request_trace import RequestTrace


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """One stream from its opening to its end.

    A client that has left has `Cancelled` or `DeadlineExceeded` as the end's error. A client that resumes after that
    opens another stream of the same id.
    """

    request: Request  # As its latest client sent it
    end: StreamEnd  # Times are of the gateway's clock
    api: str  # "grpc" or "http"
    resumed: bool  # The client had received tokens of it before
    ended_s: float  # On the gateway's clock
    trace: RequestTrace | None = None  # None: without tracing


@dataclass(frozen=True, slots=True)
class RefusedRequest:
    """A request that got an error before it had a stream: it is invalid, or its caller may not ask."""

    request_id: str  # Empty if the client chose none and none was made
    api: str  # "grpc" or "http"
    error: BatonError
