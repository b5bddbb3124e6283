"""What every worker would need for every request of a queue, from a running picture of the workers' load.

requests [n] × workers [rows of the table] ──► cached tokens, seconds to compute, decode step, may it?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.placement import PlacementInput
from baton.router.policy.worker_table import ALL, TPOT_MARGIN, WorkerTable


@dataclass(eq=False)
class Picture:
    """The workers' load once the decisions made so far are carried out. Rows of all arrays are those of the table."""

    table: WorkerTable  # once a decision was taken in, its columns of load are the picture's own
    now: float
    _branched: bool = False

    def __post_init__(self) -> None:
        self.table.offer()
        self.wait_s = np.maximum(self.table.backlog_ends_s - self.now, 0.0)
        self._rooms = int(np.count_nonzero(self.table.has_room))

    def any_room(self) -> bool:
        """Whether any worker can take work now."""
        return self._rooms > 0

    def take_prompt(self, row: int, tokens: int, compute_s: float) -> None:
        """A prompt with so many tokens to compute goes to `row`."""
        if not self._branched:
            self.table, self._branched = self.table.branch(), True
        self.wait_s[row] += compute_s
        self.table.pending_prefill[row] += tokens
        self._offer(row)

    def take_sequence(self, row: int, tokens: int, context: int) -> None:
        """A sequence of `context` tokens will decode on `row`, where so many of them need pages."""
        table = self.table
        table.decodes[row] += 1
        table.context[row] += context
        table.pages_available[row] -= -(-tokens // int(table.page_size[row]))
        self._offer(row)

    def _offer(self, row: int) -> None:
        had_room = bool(self.table.has_room[row])
        self.table.offer_of(row)
        self._rooms += bool(self.table.has_room[row]) - had_room


def idle_steps_s(tokens: np.ndarray, table: WorkerTable) -> np.ndarray:
    """The decode step of each request on the fastest decode worker, if that were idle. There has to be one."""
    rows = table.is_decode
    alone_s, token_s = (table.step_s + table.decode_s)[rows], table.context_token_s[rows]
    steps_s: np.ndarray = (alone_s + token_s * tokens[:, None]).min(axis=1)
    return steps_s


@dataclass(eq=False)
class Prices:
    """Predictions of the picture's workers (columns) for queued requests (rows, in the order of the queue).

    `tpot_s` has the requests' objectives; infinity where a request has none, or one that cannot count.
    """

    picture: Picture
    tokens: np.ndarray  # [n, 1], of each request
    tpot_s: np.ndarray  # [n, 1]
    cached: np.ndarray  # [n, workers], tokens
    compute_s: np.ndarray = field(init=False)  # for the prompt alone
    step_s: np.ndarray = field(init=False)  # of its decode, with this request beside the others
    prefill: np.ndarray = field(init=False)  # may compute the prompt, for another to decode
    local: np.ndarray = field(init=False)  # may run the whole request
    decode: np.ndarray = field(init=False)  # may take the sequence

    start_s: np.ndarray = field(init=False)  # to compute where the request may start; infinity elsewhere

    def __post_init__(self) -> None:
        self._bound = self.tpot_s < np.inf
        self._all_bound = bool(self._bound.all())
        self._promised_s = TPOT_MARGIN * self.tpot_s
        self.compute_s, self.step_s, self.prefill, self.local, self.decode = self._of(ALL)
        self._targets = np.count_nonzero(self.decode, axis=1, keepdims=True)
        self._handed_over = self._has_target()
        self.start_s = self._starts(ALL)

    def update(self, row: int) -> bool:
        """Price one worker again: its load in the picture has changed. Returns whether requests may start at fewer of
        the other workers now."""
        rows = slice(row, row + 1)
        columns, priced = (self.compute_s, self.step_s, self.prefill, self.local, self.decode), self._of(rows)
        self._targets += priced[-1].astype(np.int64) - self.decode[:, rows]
        for column, new in zip(columns, priced, strict=True):
            column[:, rows] = new
        before, self._handed_over = self._handed_over, self._has_target()
        if np.array_equal(before, self._handed_over):
            self.start_s[:, rows] = self._starts(rows)
            return False
        self.start_s = self._starts(ALL)
        return True

    @property
    def tight(self) -> bool:
        """Whether a request may not start on some worker of the pool that computes prompts."""
        table = self.picture.table
        rows = table.is_prefill | table.mixed
        rows = rows if table.any_prefill else rows | table.is_decode
        return bool(((self.start_s == np.inf) & rows).any())

    @property
    def may_start(self) -> bool:
        """Whether a request may start on a worker that can take work now."""
        return bool((self.start_s[:, self.picture.table.has_room] < np.inf).any())

    def _has_target(self) -> np.ndarray:
        """Whose prompts may be computed for another worker to decode: [n, 1]."""
        handed_over: np.ndarray = self._targets > 0
        return handed_over if self._all_bound else handed_over | ~self._bound

    def _starts(self, rows: slice) -> np.ndarray:
        """While all decode workers are full, or at their objectives, a prompt with an objective waits rather than
        violate one."""
        may, table = self.local[:, rows], self.picture.table
        if table.any_decode and table.any_prefill:
            may = may | (self.prefill[:, rows] & self._handed_over)
        return np.where(may, self.compute_s[:, rows], np.inf)

    def _of(self, rows: slice) -> tuple[np.ndarray, ...]:
        table = self.picture.table
        cached = self.cached[:, rows]
        new = self.tokens - cached
        steps = np.ceil(new / table.prompt_chunk[rows])
        work_s = new * (table.prefill_token_s[rows] + table.half_pair_s[rows] * (cached + self.tokens))
        fits = new < table.spare_tokens[rows]
        alone_s = table.decode_now_s[rows] + table.decode_s[rows]
        step_s = alone_s + table.context_token_s[rows] * self.tokens
        decode = table.is_decode[rows] & fits & (step_s <= self.tpot_s)
        local = table.serves_locally[rows] & fits
        if table.any_prefill:
            # Decode workers whose step meets every objective with a chunk in it; without objectives, one chunk at most.
            chunk_s = table.base_step_s[rows] + work_s / steps
            kept = chunk_s <= np.minimum(table.promised_s[rows], self._promised_s)
            if not self._all_bound:
                kept &= self._bound | (new <= table.unbound_tokens[rows])
            local &= table.mixed[rows] | kept if table.any_mixed else kept
        return steps * table.base_step_s[rows] + work_s, step_s, table.is_prefill[rows] & fits, local, decode


def price(queue: Sequence[PlacementInput], state: ClusterState, picture: Picture, refuses: bool) -> Prices:
    """Price a queue. An objective that not even an idle worker meets does not count where refusing is not allowed."""
    counts, table = [item.num_tokens for item in queue], picture.table
    tokens = np.array(counts)
    tpot_s = np.array([np.inf if item.objectives.tpot_s is None else item.objectives.tpot_s for item in queue])
    if table.any_decode:
        kept = np.array([not refuses or item.resumed for item in queue]) & (tpot_s < np.inf)
        if kept.any():
            tpot_s[kept & (idle_steps_s(tokens, table) > tpot_s)] = np.inf
    cached = state.cached_by_all([item.page_keys for item in queue], counts)
    return Prices(picture, tokens[:, None], tpot_s[:, None], cached)
