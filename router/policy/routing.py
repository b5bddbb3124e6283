"""The placement decision for one request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate route of the request, with its predictions."""

    worker: str
    local: bool  # prefill and decode both there, without handoff
    ttft_s: float
    wait_s: float  # of it, until the worker starts
    uncached_tokens: int
    tpot_s: float


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """Where a request's phases run.

    `local` requests stay on `prefill` for both phases. Otherwise `decode` is the worker asked to reserve pages, or
    None when none has capacity yet: prefill starts while the router looks for one.
    """

    prefill: str
    decode: str | None
    local: bool
    why: str
    candidates: tuple[Candidate, ...] = ()  # the best ones, the chosen one first
