"""What every worker would need for every request of a queue, from a running picture of the workers' load.

requests [n] × workers [rows of the table] ──► cached tokens, seconds to compute, decode step, may it?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.placement import PlacementInput
from baton.router.policy.worker_table import ALL, CHUNKS_AHEAD, WorkerTable

LOCAL_HANDICAP = 1.25  # a decode worker must be so much faster to get a prompt, because prefill slows its decodes
TPOT_MARGIN = 0.9  # share of an objective that a predicted step may take
HEADROOM_PAGES = 8  # kept free per worker so that running sequences can grow (one page each, at most this many)


@dataclass(eq=False)
class Picture:
    """The workers' load once the decisions made so far are carried out. Rows of all arrays are those of the table."""

    table: WorkerTable  # after `branch` the columns of load are the picture's own
    now: float

    def __post_init__(self) -> None:
        table = self.table
        self.wait_s = np.maximum(table.backlog_ends_s - self.now, 0.0)
        self.any_prefill = np.count_nonzero(table.is_prefill) > 0
        self.any_decode = np.count_nonzero(table.is_decode) > 0
        self.promised_s = TPOT_MARGIN * table.tpot_s  # the longest step that meets the objectives of its sequences
        self.chunk, self.decode_step_s = table.chunk.copy(), table.step_s.copy()
        self.has_room = np.zeros(len(table.names), bool)
        self._find_room(ALL)

    def branch(self) -> None:
        """Prepare for decisions."""
        self.table = table = self.table.branch()
        self.serves_locally = table.mixed | table.is_decode
        self.any_mixed = np.count_nonzero(table.mixed) > 0
        self.handicap = np.where(table.is_decode, LOCAL_HANDICAP, 1.0)
        # What a request without an objective may have to compute beside sequences with one.
        self.unbound_tokens = np.where(table.all_state_tpot & (table.tpot_s < np.inf), np.inf, table.mixed_chunk)
        self.half_pair_s = table.prefill_pair_s / 2
        self.step_s = self.decode_step_s.copy()  # of a step before its prompt tokens
        self.spare_tokens = np.zeros(len(table.names), np.int64)  # that fit in its pages
        self._find_limits(ALL)

    def any_room(self) -> bool:
        """Whether any worker can take work now."""
        return self._rooms > 0

    def take(self, row: int, target: int | None, tokens: int, context: int, compute_s: float) -> None:
        """A request goes to `row`, and will decode on `target`."""
        table, rows = self.table, slice(row, row + 1)
        self.wait_s[row] += compute_s
        table.pending_prefill[row] += tokens
        if target is not None:
            table.decodes[target] += 1
            table.context[target] += context
            table.pages_available[target] -= -(-tokens // int(table.page_size[target]))
        if target != row:
            self._find_room(rows)
        if target is not None:
            rows = slice(target, target + 1)
            self._find_room(rows)
            self._find_limits(rows)

    def _find_room(self, rows: slice) -> None:
        """Which of the rows can take work now."""
        table = self.table
        is_prefill, is_decode, decodes = table.is_prefill[rows], table.is_decode[rows], table.decodes[rows]
        chunk = np.where(is_prefill | (decodes == 0), table.chunk[rows], table.mixed_chunk[rows])
        step_s = table.decode_step_s(rows=rows)
        if self.any_prefill:
            fastest_s = step_s + table.prefill_token_s[rows] * table.mixed_chunk[rows]
            is_decode = is_decode & (fastest_s <= self.promised_s[rows])
        local = table.mixed[rows] | (is_decode & (table.pages_available[rows] > 0))
        self.has_room[rows] = (is_prefill | local) & (table.pending_prefill[rows] < CHUNKS_AHEAD * chunk)
        self.chunk[rows], self.decode_step_s[rows] = chunk, step_s
        self._rooms = int(np.count_nonzero(self.has_room))

    def _find_limits(self, rows: slice) -> None:
        """What the load of the rows leaves to a request."""
        table = self.table
        is_prefill, decodes = table.is_prefill[rows], table.decodes[rows]
        pages = table.pages_available[rows] - np.minimum(decodes, HEADROOM_PAGES)
        may = is_prefill | (decodes < table.max_batch[rows])
        self.spare_tokens[rows] = np.where(may, pages * table.page_size[rows], 0)
        self.step_s[rows] = np.where(is_prefill, table.step_s[rows], self.decode_step_s[rows])


def idle_step_s(num_tokens: int, table: WorkerTable) -> float:
    """The decode step of a request on the fastest decode worker, if that were idle. There has to be one."""
    alone = table.decode_step_s(1 - table.decodes, num_tokens - table.context)
    return float(alone[table.is_decode].min())


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
        self._find_starts()

    def update(self, row: int) -> None:
        """Price one worker again: its load in the picture has changed."""
        rows = slice(row, row + 1)
        columns = (self.compute_s, self.step_s, self.prefill, self.local, self.decode)
        for column, new in zip(columns, self._of(rows), strict=True):
            column[:, rows] = new
        self._find_starts()

    @property
    def tight(self) -> bool:
        """Whether a request may not start on some worker of the pool that computes prompts."""
        table = self.picture.table
        rows = table.is_prefill | table.mixed
        rows = rows if self.picture.any_prefill else rows | table.is_decode
        return bool(((self.start_s == np.inf) & rows).any())

    def _find_starts(self) -> None:
        """While all decode workers are full, or at their objectives, a prompt with an objective waits rather than
        violate one."""
        may = self.local
        if self.picture.any_decode and self.picture.any_prefill:
            handed_over = self.decode.any(axis=1, keepdims=True)
            may = may | (self.prefill & (handed_over if self._all_bound else handed_over | ~self._bound))
        self.start_s = np.where(may, self.compute_s, np.inf)

    def _of(self, rows: slice) -> tuple[np.ndarray, ...]:
        picture, table = self.picture, self.picture.table
        cached = self.cached[:, rows]
        new = self.tokens - cached
        steps = np.ceil(new / picture.chunk[rows])
        work_s = new * (table.prefill_token_s[rows] + picture.half_pair_s[rows] * (cached + self.tokens))
        fits = new < picture.spare_tokens[rows]
        alone_s = picture.decode_step_s[rows] + table.decode_s[rows]
        step_s = alone_s + table.context_token_s[rows] * self.tokens
        decode = table.is_decode[rows] & fits & (step_s <= self.tpot_s)
        local = picture.serves_locally[rows] & fits
        if picture.any_prefill:
            # Decode workers whose step meets every objective with a chunk in it; without objectives, one chunk at most.
            chunk_s = picture.step_s[rows] + work_s / steps
            kept = chunk_s <= np.minimum(picture.promised_s[rows], self._promised_s)
            if not self._all_bound:
                kept &= self._bound | (new <= picture.unbound_tokens[rows])
            local &= table.mixed[rows] | kept if picture.any_mixed else kept
        return steps * picture.step_s[rows] + work_s, step_s, table.is_prefill[rows] & fits, local, decode


def price(queue: Sequence[PlacementInput], state: ClusterState, picture: Picture, refuses: bool) -> Prices:
    """Price a queue. An objective that not even an idle worker meets does not count where refusing is not allowed."""
    tpot_s = []
    for item in queue:
        own_s = np.inf if item.objectives.tpot_s is None else item.objectives.tpot_s
        if own_s < np.inf and picture.any_decode and not (refuses and not item.resumed):
            own_s = np.inf if idle_step_s(item.num_tokens, picture.table) > own_s else own_s
        tpot_s.append(own_s)
    tokens = [item.num_tokens for item in queue]
    cached = state.cached_by_all([item.page_keys for item in queue], tokens)
    return Prices(picture, np.array(tokens)[:, None], np.array(tpot_s)[:, None], cached)
