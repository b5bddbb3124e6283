"""The running picture of a pass: the workers' load once the decisions made so far are carried out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baton.router.policy.worker_table import ALL, CHUNKS_AHEAD, WorkerTable

LOCAL_HANDICAP = 1.25  # a decode worker must be so much faster to get a prompt, because prefill slows its decodes
TPOT_MARGIN = 0.9  # share of an objective that a predicted step may take
HEADROOM_PAGES = 8  # kept free per worker so that running sequences can grow (one page each, at most this many)

Rows = slice | np.ndarray


@dataclass(eq=False)
class Picture:
    """What a pass plans with. Rows of all arrays are those of the table, of which it has a branch."""

    table: WorkerTable
    now: float

    def __post_init__(self) -> None:
        table = self.table
        self.wait_s = np.maximum(table.backlog_ends_s - self.now, 0.0)
        self.any_prefill = np.count_nonzero(table.is_prefill) > 0
        self.any_decode = np.count_nonzero(table.is_decode) > 0
        self.promised_s = TPOT_MARGIN * table.tpot_s  # the longest step that meets the objectives of its sequences
        self.chunk, self.step_s = table.chunk.copy(), table.step_s.copy()
        self.has_room = np.zeros(len(table.names), bool)
        self._follow(ALL)

    def branch(self) -> None:
        """Prepare for decisions: from here on the load is the picture's own."""
        self.table = table = self.table.branch()
        self.serves_locally = table.mixed | table.is_decode
        self.handicap = np.where(table.is_decode, LOCAL_HANDICAP, 1.0)
        self.all_promised = table.all_state_tpot & (table.tpot_s < np.inf)

    def any_room(self) -> bool:
        """Whether any worker can take work now."""
        return bool(np.count_nonzero(self.has_room))

    def take(self, row: int, target: int | None, tokens: int, context: int, compute_s: float) -> None:
        """A request goes to `row`, and will decode on `target`."""
        table = self.table
        self.wait_s[row] += compute_s
        table.pending_prefill[row] += tokens
        if target is not None:
            table.decodes[target] += 1
            table.context[target] += context
            table.pages_available[target] -= -(-tokens // int(table.page_size[target]))
        self._follow(np.array([row] if target is None or target == row else [row, target]))

    def _follow(self, rows: Rows) -> None:
        """Recompute what follows from the load of some rows and is the same for every request."""
        table = self.table
        is_prefill, is_decode, decodes = table.is_prefill[rows], table.is_decode[rows], table.decodes[rows]
        chunk = np.where(is_prefill | (decodes == 0), table.chunk[rows], table.mixed_chunk[rows])
        # Of a step before its prompt tokens.
        step_s = np.where(is_prefill, table.step_s[rows], table.decode_step_s(rows=rows))
        if self.any_prefill:
            fastest_s = step_s + table.prefill_token_s[rows] * table.mixed_chunk[rows]
            is_decode = is_decode & (fastest_s <= self.promised_s[rows])
        local = table.mixed[rows] | (is_decode & (table.pages_available[rows] > 0))
        self.has_room[rows] = (is_prefill | local) & (table.pending_prefill[rows] < CHUNKS_AHEAD * chunk)
        self.chunk[rows], self.step_s[rows] = chunk, step_s
