"""The place of a request's spans in a distributed trace, as it travels with the request. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from baton.protocol.bounds import Length


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A sampled trace, and the gateway's span of the request, which is the parent of the router's."""

    trace_id: Annotated[bytes, Length(16, 16)]
    span_id: Annotated[bytes, Length(8, 8)]
