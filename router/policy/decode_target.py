"""Where a sequence decodes: the one search for a worker, and which running sequences move to another.

The search serves a placement, a prompt being computed, and a migration. A sequence migrates because its worker is being
emptied (then any worker with capacity will do), because its worker will soon have to preempt for lack of pages while
another has enough, or because its worker's step violates its TPOT objective while another's does not (the bounds are
llm-d's: leave at 0.95 of the objective, join below 0.85).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from baton.router.policy.cluster_state import ClusterState, RunningSequence, WorkerView

GROWTH_PAGES = 3  # reserved beyond what a moving sequence is known to have: one may have been filled since the report
TRAVEL_PAGES = 256  # travel in the time in which the sequence fills a page, at worst
LEAVE_AT, JOIN_BELOW = 0.95, 0.85  # of a TPOT objective
PRESSED_PAGES = 2  # per running sequence: with fewer available, the worker will soon preempt


def excluding(rows: np.ndarray, state: ClusterState, *names: str | None) -> np.ndarray:
    """Of the rows of the table those of other workers than these."""
    avoided = [state.workers[name].row for name in names if name is not None and name in state.workers]
    if not avoided:
        return rows
    others = rows.copy()
    others[avoided] = False
    return others


def reachable(rows: np.ndarray, source: str | None, state: ClusterState) -> np.ndarray:
    """Of the rows of the table those of workers that `source` can hand pages to."""
    return excluding(rows, state, *state.unreachable.get(source or "", ()))


def decode_target(
    may: np.ndarray, step_s: np.ndarray, source: str | None, sequence: RunningSequence | None, state: ClusterState
) -> int | None:
    """Of the rows that `may` decode and that `source` reaches, the one of the shortest step; ties end with the name.

    With a `sequence`, rows whose pages last to the fullest moment with it come first. None: there is no such row.
    """
    rows = np.flatnonzero(reachable(may, source, state))
    if not len(rows):
        return None
    names, steps = state.table.names, step_s[rows]
    shortest = rows[steps == steps.min()].tolist()
    best: int = min(shortest, key=names.__getitem__) if len(shortest) > 1 else shortest[0]
    if sequence is None or state.workers[names[best]].fits_at_peak(sequence):
        return best
    order = sorted(zip(steps.tolist(), [names[row] for row in rows.tolist()], rows.tolist(), strict=True))
    return next((row for _, name, row in order if state.workers[name].fits_at_peak(sequence)), best)


def find_decode(
    num_tokens: int, sequence: RunningSequence, state: ClusterState, source: str, avoid: str | None
) -> str | None:
    """The decode worker, other than `avoid`, for a prompt that `source` computes."""
    table = state.table
    pages = -(-(num_tokens + 1) // table.page_size)
    may = table.is_decode & (table.pages_available >= pages) & (table.decodes < table.max_batch)
    row = decode_target(excluding(may, state, avoid), table.decode_step_s(1, num_tokens), source, sequence, state)
    return None if row is None else table.names[row]


def find_capacity(num_tokens: int, total_tokens: int, state: ClusterState, home: str, *avoid: str | None) -> str | None:
    """The worker, other than `home` and those to `avoid`, for a sequence of `num_tokens` that may come to
    `total_tokens` and whose pages are at `home`."""
    table = state.table
    pages = num_tokens // table.page_size
    pages = pages + 1 + GROWTH_PAGES + pages // TRAVEL_PAGES + table.decodes
    may = (table.is_decode | table.mixed) & (table.pages_available >= pages) & (table.decodes < table.max_batch)
    may &= table.capacity >= total_tokens
    row = decode_target(excluding(may, state, home, *avoid), table.decode_step_s(1, num_tokens), home, None, state)
    return None if row is None else table.names[row]


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

    @cache
    def has_room(name: str) -> bool:
        return state.workers[name].peak_pages() <= state.workers[name].info.num_pages

    for rows, relieve in ((pressed, partial(_from_pressed, has_room=has_room)), (slow, _from_slow)):
        for name in sorted(table.names[row] for row in np.flatnonzero(rows)):
            view = state.workers.get(name)
            move = relieve(view, state, may_move) if view is not None else None
            if move is not None:
                return move
    return None


def _from_pressed(
    view: WorkerView, state: ClusterState, may_move: Callable[[str], bool], has_room: Callable[[str], bool]
) -> Move | None:
    """The sequence that would be preempted first, if another worker has enough pages until its end.

    `has_room`: whether a worker's pages last for its own sequences.
    """
    table = state.table
    others = (table.names[row] for row in np.flatnonzero(table.is_decode | table.mixed) if row != view.row)
    if has_room(view.name) or not any(map(has_room, others)):
        return None
    for request_id, sequence in reversed(view.running.items()):
        if not may_move(request_id):
            continue
        target = _target(sequence, view, state, lambda other: has_room(other.name) and other.fits_at_peak(sequence))  # noqa: B023
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
