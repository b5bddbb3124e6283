"""The one search for a worker to decode on: for a placement, for a prompt being computed, and for a migration."""

from __future__ import annotations

import numpy as np

from baton.router.policy.cluster_state import ClusterState, RunningSequence

GROWTH_PAGES = 2  # reserved beyond what a moving sequence has
TRAVEL_PAGES = 256  # travel in the time in which the sequence fills a page, at worst


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
