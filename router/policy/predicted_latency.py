"""Baton's own placement: every worker is a candidate, priced by the latency it is predicted to give.

The queue stays here, so each pass schedules all of it afresh over all workers: requests in the order they are due, each
on the worker that would answer first, given what those before it will take. What has room starts now; the rest
waits for the next pass, with newer facts. A prompt that would come late gives way to shorter ones that would not
(Moore and Hodgson 1968: the fewest late jobs), and one that cannot be on time any more is refused.

A decode worker is a candidate too, for the whole request: its prompt then runs in small chunks beside the decodes, and
nothing is handed over. It is taken where it answers first and the step still meets what its sequences were promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cluster.routing import Candidate, RoutingDecision
from router.policy.admission import refuse_late, refuse_slow
from router.policy.cluster_state import ClusterState, RunningSequence
from router.policy.placement import Place, PlacementInput, Refuse
from router.policy.worker_table import WorkerTable

CHUNKS_AHEAD = 2  # steps of prompt work a worker may hold: enough to stay busy over a round trip
SCANNED = 64  # queued requests one pass looks at
WHOLE_HANDICAP = 1.25  # a decode worker must be so much faster to get a prompt: its decodes would rather be alone
TPOT_MARGIN = 0.9  # of an objective that a predicted step may take
HEADROOM_PAGES = 8  # that stay free on a worker for its sequences' growth, at one each
EXPLAINED = 5  # candidates kept with a decision


@dataclass(slots=True, eq=False)
class _Prices:
    """What each worker (row of the table) would do for one request."""

    cached: np.ndarray  # tokens
    compute_s: np.ndarray  # for the prompt alone
    tpot_s: np.ndarray  # of its decode, with this request beside the others
    allowed: np.ndarray  # may compute the prompt
    may_decode: np.ndarray  # may take the sequence over


@dataclass(eq=False)
class _Pass:
    """One pass's running picture: what the workers will have once the verdicts so far are carried out."""

    table: WorkerTable
    now: float
    planned: dict[int, list[tuple[float, PlacementInput]]] = field(default_factory=dict)  # row → waiting there

    def __post_init__(self) -> None:
        table = self.table
        self.wait_s = np.maximum(table.busy_until_s - self.now, 0.0)
        self.uncomputed = table.uncomputed.copy()
        self.decodes = table.decodes.copy()
        self.context = table.context.copy()
        self.pages = table.pages_available.copy()
        self.any_prefills = bool(table.prefills.any())
        self.any_decoder = bool(table.decoder.any())
        self.limit_s = np.where(table.all_state_tpot, TPOT_MARGIN * table.tpot_s, np.inf)
        self.refresh()

    def refresh(self) -> None:
        """What follows from the columns and is the same for every request."""
        table = self.table
        self.chunk = np.where(table.prefills | (self.decodes == 0), table.chunk, table.mixed_chunk)
        beside = table.decode_s * self.decodes + table.context_token_s * self.context
        self.step_s = table.step_s + np.where(table.prefills, 0.0, beside)  # of a step before its prompt tokens
        self.tpot_s = table.step_s + beside + table.decode_s  # of decodes, with one more sequence
        self.may_start = self.decodes < table.max_batch
        fastest_mixed = self.step_s + table.prefill_token_s * table.mixed_chunk
        whole = table.mixed | (table.decoder & (fastest_mixed <= self.limit_s) & (self.pages > 0))
        self.has_room = (table.prefills | whole) & (self.uncomputed < CHUNKS_AHEAD * self.chunk)

    def take(self, row: int, target: int | None, tokens: int, context: int, compute_s: float) -> None:
        """A request goes to `row`, and will decode on `target`."""
        self.wait_s[row] += compute_s
        self.uncomputed[row] += tokens
        if target is not None:
            self.decodes[target] += 1
            self.context[target] += context
            self.pages[target] -= -(-tokens // int(self.table.page_size[target]))
        self.refresh()


@dataclass(frozen=True, slots=True)
class PredictedLatency:
    """`refuse` says whether requests that cannot meet their own TTFT objective any more are refused."""

    refuse: bool = True
    name: str = "predicted_latency"

    def decide(self, queue: Sequence[PlacementInput], state: ClusterState, now: float) -> list[Place | Refuse]:
        if not queue:
            return []
        view = _Pass(state.table, now)
        if not view.has_room.any():
            return self._refuse_overdue(queue, now)
        verdicts: list[Place | Refuse] = []
        late: list[PlacementInput] = []
        for item in queue[:SCANNED]:
            verdict = self._schedule(item, state, view, late)
            if verdict is not None:
                verdicts.append(verdict)
                if not view.has_room.any():
                    return verdicts
        for item in late:
            verdict = self._schedule(item, state, view, None)
            if verdict is not None:
                verdicts.append(verdict)
        return verdicts

    def _refuse_overdue(self, queue: Sequence[PlacementInput], now: float) -> list[Place | Refuse]:
        """While nobody has room: those whose moment has passed."""
        overdue = [item for item in queue if item.due_s is not None and now > item.due_s and not item.resumed]
        return [Refuse(item.request_id, refuse_late(item, 0.0, 0.0)) for item in overdue if self.refuse]

    def _refuse_hopeless(self, item: PlacementInput, state: ClusterState, view: _Pass) -> Refuse | None:
        """A request nobody may take now: refused when its moment has passed, or when no idle worker is fast enough."""
        if not self.refuse or item.resumed:
            return None
        if item.due_s is not None and view.now > item.due_s:
            return Refuse(item.request_id, refuse_late(item, 0.0, 0.0))
        alone_s = self._tpot_alone(item, state)
        if item.objectives.tpot_s is not None and item.objectives.tpot_s < alone_s < np.inf:
            return Refuse(item.request_id, refuse_slow(item, alone_s))
        return None

    @staticmethod
    def _tpot_alone(item: PlacementInput, state: ClusterState) -> float:
        """What the fastest worker that decodes would need per token with nothing beside; infinite without any."""
        table = state.table
        alone = table.step_s + table.decode_s + table.context_token_s * item.num_tokens
        return float(np.min(np.where(table.decoder | table.mixed, alone, np.inf), initial=np.inf))

    def _schedule(
        self, item: PlacementInput, state: ClusterState, view: _Pass, late: list[PlacementInput] | None
    ) -> Place | Refuse | None:
        """Give the request its place in this pass; `late` takes those that would miss their objective."""
        prices = self._price(item, state, view)
        if not prices.allowed.any():
            return self._refuse_hopeless(item, state, view)
        ttft = np.where(prices.allowed, view.wait_s + prices.compute_s, np.inf)
        row = int(np.argmin(np.where(state.table.decoder, WHOLE_HANDICAP, 1.0) * ttft))
        if item.due_s is not None and late is not None and view.now + ttft[row] > item.due_s:
            fastest = float(np.min(np.where(prices.allowed, prices.compute_s, np.inf)))
            if self.refuse and not item.resumed and view.now + fastest > item.due_s:
                return Refuse(item.request_id, refuse_late(item, float(view.wait_s[row]), fastest))
            late.append(self._give_way(item, float(prices.compute_s[row]), row, view))
            if late[-1] is item:
                return None
        if not view.has_room[row]:
            view.wait_s[row] += prices.compute_s[row]
            view.planned.setdefault(row, []).append((float(prices.compute_s[row]), item))
            return None
        return self._place(item, row, ttft, prices, state, view)

    @staticmethod
    def _give_way(item: PlacementInput, compute_s: float, row: int, view: _Pass) -> PlacementInput:
        """Who is late: of those that wait for the worker the one with most work, if that is not `item` itself."""
        waiting = view.planned.get(row, [])
        longest = max(waiting, key=lambda one: (one[0], one[1].request_id), default=None)
        if longest is None or longest[0] <= compute_s:
            return item
        waiting.remove(longest)
        view.wait_s[row] -= longest[0]
        return longest[1]

    def _place(
        self, item: PlacementInput, row: int, ttft: np.ndarray, prices: _Prices, state: ClusterState, view: _Pass
    ) -> Place:
        table = state.table
        whole = not table.prefills[row]
        target = row if whole else self._decode_row(item, prices, state)
        tokens = int(item.num_tokens - prices.cached[row])
        order = np.argsort(ttft, kind="stable")[:EXPLAINED].tolist()
        candidates = tuple(
            Candidate(
                worker=table.names[one],
                whole=not table.prefills[one],
                ttft_s=float(ttft[one]),
                wait_s=float(view.wait_s[one]),
                uncached_tokens=int(item.num_tokens - prices.cached[one]),
                tpot_s=float(prices.tpot_s[one if not table.prefills[one] or target is None else target]),
            )
            for one in order
            if np.isfinite(ttft[one])
        )
        why = (
            f"{table.names[row]} should answer first, in {1000 * ttft[row]:.0f} ms: "
            f"{1000 * view.wait_s[row]:.0f} ms until it begins, {tokens} of {item.num_tokens} tokens to compute"
        )
        view.take(row, target, tokens, item.num_tokens, float(prices.compute_s[row]))
        decode = table.names[target] if target is not None and not whole else None
        return Place(item.request_id, RoutingDecision(table.names[row], decode, whole, why, candidates))

    def _price(self, item: PlacementInput, state: ClusterState, view: _Pass) -> _Prices:
        table = state.table
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        new = item.num_tokens - cached
        steps = -(-new // view.chunk)
        pairs = new * (cached + new / 2)
        work = table.prefill_token_s * new + table.prefill_pair_s * pairs
        compute = steps * view.step_s + work
        tpot = view.tpot_s + table.context_token_s * item.num_tokens
        own = np.inf if item.objectives.tpot_s is None else item.objectives.tpot_s
        if (item.resumed or not self.refuse) and own < self._tpot_alone(item, state):
            own = np.inf  # nobody can keep the promise, and it is served all the same
        fits = view.pages > new // table.page_size + np.minimum(view.decodes, HEADROOM_PAGES)
        room = fits & view.may_start
        may_decode = table.decoder & room & (tpot <= own)
        if not view.any_decoder or (np.isfinite(own) and not may_decode.any()):
            # All decode workers are full, or as slow as promised: the prompt waits rather than break promises.
            allowed = np.zeros(len(cached), bool)
        else:
            allowed = table.prefills & fits
        whole = (table.mixed | table.decoder) & room
        if view.any_prefills:
            # Decode workers whose step keeps every promise with a chunk in it; without promises, one chunk at most.
            limit = np.minimum(view.limit_s, TPOT_MARGIN * own)
            chunk_s = view.step_s + work / np.maximum(steps, 1)
            whole &= table.mixed | np.where(np.isfinite(limit), chunk_s <= limit, new <= table.mixed_chunk)
        return _Prices(cached, compute, tpot, allowed | whole, may_decode)

    @staticmethod
    def _decode_row(item: PlacementInput, prices: _Prices, state: ClusterState) -> int | None:
        """The decode worker of the shortest step that has pages, now and at its fullest moment, as far as foreseen."""
        table = state.table
        sequence = RunningSequence(item.num_tokens, item.output)
        rows = np.flatnonzero(prices.may_decode)
        order = [int(rows[index]) for index in np.argsort(prices.tpot_s[rows], kind="stable")]
        for row in order:
            view = state.workers[table.names[row]]
            if view.peak_pages(sequence) <= view.info.num_pages:
                return row
        return order[0] if order else None

    def find_decode(self, item: PlacementInput, state: ClusterState, avoid: str | None, now: float) -> str | None:
        table = state.table
        tpot = table.step_s + table.decode_s * (table.decodes + 1)
        tpot += table.context_token_s * (table.context + item.num_tokens)
        pages = -(-item.num_tokens // table.page_size)
        # One page more to grow into, if the worker has more at all.
        fits = (pages <= table.num_pages) & (table.pages_available >= np.minimum(pages + 1, table.num_pages))
        may = table.decoder & fits & (table.decodes < table.max_batch)
        if avoid is not None and avoid in state.workers:
            may[state.workers[avoid].row] = False
        empty = np.zeros(len(may))
        row = self._decode_row(item, _Prices(empty, empty, tpot, may, may), state)
        return None if row is None else table.names[row]
