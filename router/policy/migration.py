"""Which running sequences move to which decode worker, and when it is worth it.

A sequence migrates because its worker is being emptied (then any worker with capacity will do), because its worker
will soon have to preempt for lack of pages while another has enough, or because its worker's step violates its TPOT
objective while another's does not (the bounds are llm-d's: leave at 0.95 of the objective, join below 0.85).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from baton.router.policy.cluster_state import ClusterState, RunningSequence, WorkerView
from baton.router.policy.decode_target import GROWTH_PAGES, TRAVEL_PAGES, find_capacity

LEAVE_AT, JOIN_BELOW = 0.95, 0.85  # of a TPOT objective
PRESSED_PAGES = 2  # per running sequence: with fewer available, the worker will soon preempt


@dataclass(frozen=True, slots=True)
class Move:
    """A sequence that should migrate to `worker`, with the reason as a sentence."""

    request_id: str
    worker: str
    why: str


def growth_tokens(num_tokens: int, page_size: int) -> int:
    """Tokens to reserve beyond the known ones: the sequence keeps decoding while its pages travel."""
    return page_size * (GROWTH_PAGES + num_tokens // page_size // TRAVEL_PAGES)


def relief(state: ClusterState, may_move: Callable[[str], bool]) -> Move | None:
    """The most useful migration now, of a request for which `may_move`; None when none is needed."""
    table = state.table
    pressed = (table.decodes > 1) & (table.pages_available < PRESSED_PAGES * table.decodes)
    slow = (table.decodes > 1) & (table.decode_step_s() >= LEAVE_AT * table.tpot_s)
    for rows, relieve in ((pressed, _from_pressed), (slow, _from_slow)):
        for name in sorted(table.names[row] for row in np.flatnonzero(rows)):
            view = state.workers.get(name)
            move = relieve(view, state, may_move) if view is not None else None
            if move is not None:
                return move
    return None


def _from_pressed(view: WorkerView, state: ClusterState, may_move: Callable[[str], bool]) -> Move | None:
    """The sequence that would be preempted first, if another worker has enough pages until its end."""
    if view.peak_pages() <= view.info.num_pages:
        return None
    for request_id, sequence in reversed(view.running.items()):
        if not may_move(request_id):
            continue
        target = _target(sequence, view, state, lambda other: other.fits_at_peak(sequence))  # noqa: B023
        if target is not None:
            why = f"{view.name} has {view.pages_available} pages left for {len(view.running)} sequences"
            return Move(request_id, target, why)
    return None


def _from_slow(view: WorkerView, state: ClusterState, may_move: Callable[[str], bool]) -> Move | None:
    """The longest sequence of a worker that violates a TPOT objective, if another meets all objectives with it."""
    objectives = [one.tpot_s for one in view.running.values() if one.tpot_s is not None]
    movable = [(-one.tokens, request_id) for request_id, one in view.running.items() if may_move(request_id)]
    if not movable or not objectives:
        return None
    request_id = min(movable)[1]
    sequence = view.running[request_id]
    target = _target(sequence, view, state, lambda other: _keeps_promises(other, sequence))
    if target is None:
        return None
    step_ms, promised_ms = 1000 * view.decode_step_s(), 1000 * min(objectives)
    why = f"a step of {view.name} takes {step_ms:.0f} ms, {promised_ms:.0f} ms were promised"
    return Move(request_id, target, why)


def _keeps_promises(view: WorkerView, extra: RunningSequence) -> bool:
    promised = [one.tpot_s for one in (*view.running.values(), extra) if one.tpot_s is not None]
    in_time = not promised or view.decode_step_s(1, extra.tokens) < JOIN_BELOW * min(promised)
    return in_time and view.fits_at_peak(extra)


def _target(
    sequence: RunningSequence, source: WorkerView, state: ClusterState, suits: Callable[[WorkerView], bool]
) -> str | None:
    total = sequence.prompt_tokens + sequence.output.limit
    name = find_capacity(sequence.tokens, total, state, source.name)
    return name if name is not None and suits(state.workers[name]) else None
