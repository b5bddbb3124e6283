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
from router.policy.admission import refuse_late
from router.policy.cluster_state import ClusterState, RunningSequence
from router.policy.placement import Place, PlacementInput, Refuse

CHUNKS_AHEAD = 2  # steps of prompt work a worker may hold: enough to stay busy over a round trip
SCANNED = 64  # queued requests one pass looks at
WHOLE_HANDICAP = 1.25  # a decode worker must be so much faster to get a prompt: its decodes would rather be alone
TPOT_MARGIN = 0.9  # of an objective that a predicted step may take
EXPLAINED = 5  # candidates kept with a decision


@dataclass(slots=True, eq=False)
class _Prices:
    """What each worker (row of the table) would do for one request."""

    cached: np.ndarray  # tokens
    compute_s: np.ndarray  # for the prompt alone
    tpot_s: np.ndarray  # of its decode, with this request beside the others
    allowed: np.ndarray  # may compute the prompt
    may_decode: np.ndarray  # may take the sequence over


@dataclass(slots=True, eq=False)
class _Pass:
    """One pass's running picture: what the workers will have once the verdicts so far are carried out."""

    wait_s: np.ndarray
    uncomputed: np.ndarray
    decodes: np.ndarray
    context: np.ndarray
    pages: np.ndarray
    planned: dict[int, list[tuple[float, PlacementInput]]] = field(default_factory=dict)  # row → waiting there


@dataclass(frozen=True, slots=True)
class PredictedLatency:
    """`refuse` says whether requests that cannot meet their own TTFT objective any more are refused."""

    refuse: bool = True
    name: str = "predicted_latency"

    def decide(self, queue: Sequence[PlacementInput], state: ClusterState, now: float) -> list[Place | Refuse]:
        table = state.table
        if not np.any(self._has_room(state, table.uncomputed)) and not self.refuse:
            return []
        view = _Pass(
            np.maximum(table.busy_until_s - now, 0.0),
            table.uncomputed.copy(),
            table.decodes.copy(),
            table.context.copy(),
            table.pages_available.copy(),
        )
        verdicts: list[Place | Refuse] = []
        late: list[PlacementInput] = []
        for item in queue[:SCANNED]:
            verdict = self._schedule(item, state, view, now, late)
            if verdict is not None:
                verdicts.append(verdict)
        for item in late:
            verdict = self._schedule(item, state, view, now, None)
            if verdict is not None:
                verdicts.append(verdict)
        return verdicts

    def _schedule(
        self,
        item: PlacementInput,
        state: ClusterState,
        view: _Pass,
        now: float,
        late: list[PlacementInput] | None,
    ) -> Place | Refuse | None:
        """Give the request its place in this pass; `late` takes those that would miss their objective."""
        table, prices = state.table, self._price(item, state, view)
        if not prices.allowed.any():
            return None
        ttft = np.where(prices.allowed, view.wait_s + prices.compute_s, np.inf)
        row = int(np.argmin(np.where(table.decoder, WHOLE_HANDICAP, 1.0) * ttft))
        if item.due_s is not None and late is not None and now + ttft[row] > item.due_s:
            fastest = float(np.min(np.where(prices.allowed, prices.compute_s, np.inf)))
            if self.refuse and not item.resumed and now + fastest > item.due_s:
                return Refuse(item.request_id, refuse_late(item, float(view.wait_s[row]), fastest))
            late.append(self._give_way(item, float(prices.compute_s[row]), row, view))
            if late[-1] is item:
                return None
        if not self._has_room(state, view.uncomputed)[row]:
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
        view.wait_s[row] += prices.compute_s[row]
        view.uncomputed[row] += tokens
        if target is not None:
            view.decodes[target] += 1
            view.context[target] += item.num_tokens
            view.pages[target] -= -(-item.num_tokens // int(table.page_size[target]))
        decode = table.names[target] if target is not None and not whole else None
        return Place(item.request_id, RoutingDecision(table.names[row], decode, whole, why, candidates))

    def _price(self, item: PlacementInput, state: ClusterState, view: _Pass) -> _Prices:
        table = state.table
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        new = item.num_tokens - cached
        chunk = np.where(table.prefills | (view.decodes == 0), table.chunk, table.mixed_chunk)
        steps = -(-new // chunk)
        beside = np.where(table.prefills, 0.0, table.decode_s * view.decodes + table.context_token_s * view.context)
        pairs = new * (cached + new / 2)
        compute = steps * (table.step_s + beside) + table.prefill_token_s * new + table.prefill_pair_s * pairs
        tpot = table.step_s + table.decode_s * (view.decodes + 1)
        tpot += table.context_token_s * (view.context + item.num_tokens)
        pages = -(-new // table.page_size) + 1
        room = (view.pages >= pages + np.minimum(view.decodes, 8)) & (view.decodes < table.max_batch)
        own = np.inf if item.objectives.tpot_s is None else item.objectives.tpot_s
        may_decode = table.decoder & room & (tpot <= own)
        allowed = table.prefills & (view.pages >= pages)
        if item.objectives.tpot_s is not None and allowed.any() and not may_decode.any():
            # All decode workers are as slow as promised, or full: the prompt waits rather than break promises.
            allowed = allowed & ~table.decoder.any()
        allowed = allowed & bool(table.decoder.any())
        whole = (table.mixed | table.decoder) & room
        if table.prefills.any():
            whole &= table.mixed | self._may_take_whole(item, state, new, compute / np.maximum(steps, 1))
        return _Prices(cached, compute, tpot, allowed | whole, may_decode)

    @staticmethod
    def _may_take_whole(item: PlacementInput, state: ClusterState, new: np.ndarray, chunk_s: np.ndarray) -> np.ndarray:
        """Decode workers whose step keeps every promise with a chunk in it; without promises, one chunk at most."""
        table = state.table
        own = np.inf if item.objectives.tpot_s is None else item.objectives.tpot_s
        limit = TPOT_MARGIN * np.minimum(table.tpot_s, own)
        promised = table.all_state_tpot & np.isfinite(limit)
        return np.where(promised, chunk_s <= limit, new <= table.mixed_chunk)

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

    @staticmethod
    def _has_room(state: ClusterState, uncomputed: np.ndarray) -> np.ndarray:
        """Workers that hold less prompt work than they need to stay busy: what is still queued here can go anywhere."""
        table = state.table
        chunk = np.where(table.prefills | (table.decodes == 0), table.chunk, table.mixed_chunk)
        return (table.prefills | table.decoder | table.mixed) & (uncomputed < CHUNKS_AHEAD * chunk)

    def find_decode(self, item: PlacementInput, state: ClusterState, avoid: str | None, now: float) -> str | None:
        table = state.table
        tpot = table.step_s + table.decode_s * (table.decodes + 1)
        tpot += table.context_token_s * (table.context + item.num_tokens)
        pages = -(-item.num_tokens // table.page_size) + 1
        may = table.decoder & (table.pages_available >= pages) & (table.decodes < table.max_batch)
        if avoid is not None and avoid in state.workers:
            may[state.workers[avoid].row] = False
        empty = np.zeros(len(may))
        row = self._decode_row(item, _Prices(empty, empty, tpot, may, may), state)
        return None if row is None else table.names[row]
