"""What every worker would need for every request of a queue: a pure function of the running picture.

requests [n] × workers [rows of the table] ──► cached tokens, seconds to compute, decode step, may it?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.picture import HEADROOM_PAGES, TPOT_MARGIN, Picture, Rows
from baton.router.policy.placement import PlacementInput
from baton.router.policy.worker_table import ALL, WorkerTable


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
        self.compute_s, self.step_s, self.prefill, self.local, self.decode = self._of(ALL)
        self._find_starts()

    def update(self, row: int) -> None:
        """Price one worker again: its load in the picture has changed."""
        rows = np.array([row])
        columns = (self.compute_s, self.step_s, self.prefill, self.local, self.decode)
        for column, new in zip(columns, self._of(rows), strict=True):
            column[:, rows] = new
        self._find_starts()

    @property
    def tight(self) -> bool:
        """Whether a request may not start on some worker of the pool that computes prompts."""
        table = self.picture.table
        rows = table.is_prefill | table.mixed
        return bool((self.start_s[:, rows if self.picture.any_prefill else rows | table.is_decode] == np.inf).any())

    def _find_starts(self) -> None:
        """While all decode workers are full, or at their objectives, a prompt with an objective waits rather than
        violate one."""
        handed_over = (self.tpot_s == np.inf) | self.decode.any(axis=1, keepdims=True)
        may = self.local | (self.prefill & (handed_over & self.picture.any_decode))
        self.start_s = np.where(may, self.compute_s, np.inf)

    def _of(self, rows: Rows) -> tuple[np.ndarray, ...]:
        picture, table, tokens, own_s = self.picture, self.picture.table, self.tokens, self.tpot_s
        cached = self.cached[:, rows]
        new = tokens - cached
        steps = -(-new // picture.chunk[rows])
        work = table.prefill_token_s[rows] * new + table.prefill_pair_s[rows] * (new * (cached + new / 2))
        step_s = table.decode_step_s(1, tokens, rows)
        headroom = np.minimum(table.decodes[rows], HEADROOM_PAGES)
        fits = table.pages_available[rows] > new // table.page_size[rows] + headroom
        room = fits & (table.decodes[rows] < table.max_batch[rows])
        decode = table.is_decode[rows] & room & (step_s <= own_s)
        local = picture.serves_locally[rows] & room
        if picture.any_prefill:
            # Decode workers whose step meets every objective with a chunk in it; without objectives, one chunk at most.
            chunk_s = picture.step_s[rows] + work / steps
            kept = chunk_s <= np.minimum(picture.promised_s[rows], TPOT_MARGIN * own_s)
            kept &= (own_s < np.inf) | picture.all_promised[rows] | (new <= table.mixed_chunk[rows])
            local &= table.mixed[rows] | kept
        return steps * picture.step_s[rows] + work, step_s, table.is_prefill[rows] & fits, local, decode


def price(queue: Sequence[PlacementInput], state: ClusterState, picture: Picture, refuses: bool) -> Prices:
    """Price a queue. An objective that not even an idle worker meets does not count where refusing is not allowed."""
    tpot_s = []
    for item in queue:
        own_s = np.inf if item.objectives.tpot_s is None else item.objectives.tpot_s
        if own_s < np.inf and picture.any_decode and not (refuses and not item.resumed):
            own_s = np.inf if idle_step_s(item.num_tokens, picture.table) > own_s else own_s
        tpot_s.append(own_s)
    tokens = np.array([[item.num_tokens] for item in queue])
    cached = state.cached_by_all([item.page_keys for item in queue], tokens)
    return Prices(picture, tokens, np.array(tpot_s)[:, None], cached)
