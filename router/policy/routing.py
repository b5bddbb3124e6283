"""What the router decided for one request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way the request could have gone, with what was predicted of it."""

    worker: str
    whole: bool  # prefill and decode both there, no handoff
    ttft_s: float
    wait_s: float  # of it, until the worker begins
    uncached_tokens: int
    tpot_s: float


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
    candidates: tuple[Candidate, ...] = ()  # the best ones, the chosen one first
