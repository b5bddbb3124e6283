"""What the router decided for one request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """Where a request's phases run.

    `whole` requests stay on `prefill` for both phases. Otherwise `decode` is the worker asked to reserve pages, or
    None when none has room yet: prefill goes on and a decode worker is looked for meanwhile.
    """

    prefill: str
    decode: str | None
    whole: bool
    why: str
