"""Decides when a cluster whose Ray has died is restarted: the pure part of deploy/supervisor.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

# Before the first attempt, the second, …: since the attempt before failed, or since the cluster was back.
PAUSES_S = (0.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
STABLE_S = 300.0  # after so long a new death is counted as the first one
Phase = Literal["watching", "waiting", "starting", "gave up", "ended"]
Action = Literal["none", "start", "exit"]


@dataclass(frozen=True, slots=True)
class Seen:
    """One observation by the supervisor."""

    noted: bool  # The note still belongs to its cluster, and no command is ending that.
    dead: tuple[str, ...] = ()  # Vital processes that died, with the reason where it is known.
    attempt: Literal["none", "running", "done", "failed"] = "none"
    error: str = ""  # Reason of a failed attempt.


@dataclass(frozen=True, slots=True)
class Recovery:
    """The supervisor's state. Times are seconds of the machine's monotonic clock."""

    phase: Phase = "watching"
    since_s: float = 0.0
    attempts: int = 0  # Attempts since the cluster was last stable.
    dead: tuple[str, ...] = ()
    died_s: float = 0.0
    error: str = ""


def step(state: Recovery, seen: Seen, now_s: float) -> tuple[Recovery, Action]:
    """The next state, and the action to take now."""
    if state.phase in ("gave up", "ended"):
        return state, "exit"
    if not seen.noted:
        return replace(state, phase="ended", since_s=now_s), "exit"
    if state.phase == "watching":
        return _watch(state, seen, now_s)
    if state.phase == "waiting":
        if now_s < state.since_s + PAUSES_S[state.attempts]:
            return state, "none"
        return replace(state, phase="starting", since_s=now_s, attempts=state.attempts + 1), "start"
    if seen.attempt == "done":
        return replace(state, phase="watching", since_s=now_s, error=""), "none"
    if seen.attempt == "failed":
        phase: Phase = "waiting" if state.attempts < len(PAUSES_S) else "gave up"
        return replace(state, phase=phase, since_s=now_s, error=seen.error), "none" if phase == "waiting" else "exit"
    return state, "none"


def _watch(state: Recovery, seen: Seen, now_s: float) -> tuple[Recovery, Action]:
    if not seen.dead:
        return state, "none"
    attempts = state.attempts if now_s < state.since_s + STABLE_S else 0
    if attempts >= len(PAUSES_S):
        return replace(state, phase="gave up", since_s=now_s, dead=seen.dead, died_s=now_s), "exit"
    dead = Recovery("waiting", state.since_s, attempts, seen.dead, now_s)
    return step(dead, Seen(noted=True), now_s)


def words(state: Recovery, now_s: float, supervised: bool = True) -> str:
    """The death and restart of the cluster as a clause for `baton status`; empty without one.

    `supervised` says whether the supervisor is running.
    """
    if not state.dead:
        return ""
    died = f"{' and '.join(state.dead)} died {_span(now_s - state.died_s)} ago"
    if state.phase == "watching":
        return f"{died}; the cluster was back {_span(state.since_s - state.died_s)} later"
    if state.phase in ("waiting", "starting") and not supervised:
        return f"{died}, and the supervisor that was restarting the cluster has ended"
    if state.phase == "starting":
        return f"{died}; the cluster is being restarted (attempt {state.attempts})"
    failed = f": {state.error.rstrip('.')}" if state.error else ""
    if state.phase == "waiting":
        left = max(0.0, state.since_s + PAUSES_S[state.attempts] - now_s)
        return f"{died}; attempt {state.attempts + 1} to restart the cluster begins in {left:.0f} s{failed}"
    return f"{died}; {state.attempts} attempts to restart the cluster failed{failed}"


def restored_pools(configured: Mapping[str, int], workers: Sequence[str]) -> dict[str, int]:
    """How many workers to start in each pool: as many as are named after it.

    A worker is named after the pool that it started in, so a rebalance is not restored. A configured pool gets at
    least one worker: after a rebalance and a scale, no worker may be named after it.
    """
    counts = {pool: sum(name.rpartition("-")[0] == pool for name in workers) for pool in configured}
    for pool in configured:
        largest = max(counts, key=lambda name: (counts[name], name))
        if configured[pool] and not counts[pool] and counts[largest] > 1:
            counts[largest] -= 1
            counts[pool] = 1
    return counts


def _span(seconds: float) -> str:
    """The time in the largest unit of which it has at least two."""
    for unit, length_s in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"
