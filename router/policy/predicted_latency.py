"""Baton's own placement: every worker is a candidate, priced by its predicted latency.

The queue stays here, so each pass schedules all of it from scratch over all workers: requests in order of due time,
each on the worker that would answer first, given the load of those before it. Requests that fit start now; the rest
waits for the next pass, with newer data. A prompt that would be late gives way to shorter ones that would not
(Moore and Hodgson 1968: the fewest late jobs), and one that cannot be on time any more is refused.

A decode worker is a candidate too, for local prefill: the prompt then runs in small chunks beside the decodes, without
a handoff. It is chosen if it answers first and its step still meets its sequences' objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from baton.router.policy.admission import refuse_late, refuse_slow
from baton.router.policy.cluster_state import ClusterState, RunningSequence
from baton.router.policy.migration import reachable
from baton.router.policy.placement import Place, PlacementInput, Refuse
from baton.router.policy.routing import Candidate, RoutingDecision
from baton.router.policy.worker_table import WorkerTable

CHUNKS_AHEAD = 2  # steps of prompt work per worker: enough to stay busy over a round trip
SCANNED = 64  # queued requests examined in one pass
LOCAL_HANDICAP = 1.25  # a decode worker must be so much faster to get a prompt, because prefill slows its decodes
TPOT_MARGIN = 0.9  # share of an objective that a predicted step may take
HEADROOM_PAGES = 8  # kept free per worker so that running sequences can grow (one page each, at most this many)
PARTITIONED = 256  # workers above which the few best are found without sorting all
STARVING_S, STARVING_EVERY = 10.0, 8  # requests overdue this long get one placement in so many
EXPLAINED = 5  # candidates kept with a decision


@dataclass(slots=True, eq=False)
class _Prices:
    """Predictions of each worker (row of the table) for one request."""

    cached: np.ndarray  # tokens
    compute_s: np.ndarray  # for the prompt alone
    tpot_s: np.ndarray  # of its decode, with this request beside the others
    allowed: np.ndarray  # may compute the prompt
    may_decode: np.ndarray  # may take the sequence
    idle_tpot_s: float | None = None  # of the fastest worker if it were idle; set only if that is too slow


@dataclass(eq=False)
class _Pass:
    """The state within one pass: the workers' load once the decisions so far are carried out."""

    table: WorkerTable
    now: float
    planned: dict[int, list[tuple[float, PlacementInput]]] = field(default_factory=dict)  # row → waiting there

    def __post_init__(self) -> None:
        table = self.table
        self.wait_s = np.maximum(table.backlog_ends_s - self.now, 0.0)
        self.pending_prefill = table.pending_prefill.copy()
        self.decodes = table.decodes.copy()
        self.context = table.context.copy()
        self.pages = table.pages_available.copy()
        self.any_prefills = np.count_nonzero(table.is_prefill) > 0
        self.any_decoder = np.count_nonzero(table.is_decode) > 0
        self.may_serve_locally = table.mixed | table.is_decode
        self.handicap = np.where(table.is_decode, LOCAL_HANDICAP, 1.0)
        self.promised_s = TPOT_MARGIN * table.tpot_s  # the longest step that meets the objectives of its sequences
        self.all_promised = table.all_state_tpot & (table.tpot_s < np.inf)
        self._stale = True

    def any_capacity(self) -> bool:
        """Whether any worker can take work now."""
        self.refresh()
        return bool(np.count_nonzero(self.has_capacity))

    def refresh(self) -> None:
        """Recompute the values that follow from the columns and are the same for every request."""
        if not self._stale:
            return
        self._stale = False
        table = self.table
        self.chunk = np.where(table.is_prefill | (self.decodes == 0), table.chunk, table.mixed_chunk)
        beside = table.decode_s * self.decodes + table.context_token_s * self.context
        self.step_s = table.step_s + np.where(table.is_prefill, 0.0, beside)  # of a step before its prompt tokens
        self.tpot_s = table.step_s + beside + table.decode_s  # of decodes, with one more sequence
        self.may_start = self.decodes < table.max_batch
        self.headroom = np.minimum(self.decodes, HEADROOM_PAGES)
        fastest_mixed = self.step_s + table.prefill_token_s * table.mixed_chunk
        kept = fastest_mixed <= self.promised_s
        if not self.any_prefills:
            kept = table.is_decode  # there is no choice
        local = table.mixed | (table.is_decode & kept & (self.pages > 0))
        self.has_capacity = (table.is_prefill | local) & (self.pending_prefill < CHUNKS_AHEAD * self.chunk)

    def take(self, row: int, target: int | None, tokens: int, context: int, compute_s: float) -> None:
        """A request goes to `row`, and will decode on `target`."""
        self.wait_s[row] += compute_s
        self.pending_prefill[row] += tokens
        if target is not None:
            self.decodes[target] += 1
            self.context[target] += context
            self.pages[target] -= -(-tokens // int(self.table.page_size[target]))
        self._stale = True


@dataclass(slots=True, eq=False)
class PredictedLatency:
    """`refuse`: whether requests that can no longer meet their TTFT objective are refused."""

    refuse: bool = True
    name: str = "predicted_latency"
    serves_locally: bool = True
    _placed: int = 0

    def decide(self, queue: Sequence[PlacementInput], state: ClusterState, now: float) -> list[Place | Refuse]:
        if not queue:
            return []
        view = _Pass(state.table, now)
        if not view.any_capacity():
            return self._refuse_overdue(queue, view)
        verdicts: list[Place | Refuse] = []
        late: list[PlacementInput] = []
        starving = self._starving(queue, now)
        for item in queue[:SCANNED]:
            if not view.any_capacity():
                return verdicts
            verdict = self._schedule(item, state, view, None if item is starving else late)
            if verdict is not None:
                verdicts.append(verdict)
        for item in late if late and view.any_capacity() else ():
            view.refresh()
            verdict = self._schedule(item, state, view, None)
            if verdict is not None:
                verdicts.append(verdict)
        return verdicts

    def _starving(self, queue: Sequence[PlacementInput], now: float) -> PlacementInput | None:
        """The starvation guard: every so often the request that is overdue longest.

        Without refusals, requests that are on time would otherwise pass the late ones as long as they arrive.
        """
        if self._placed % STARVING_EVERY:
            return None
        overdue = [item for item in queue[:SCANNED] if item.due_s is not None and now > item.due_s + STARVING_S]
        return min(overdue, key=lambda item: (item.due_s, item.request_id), default=None)

    def _refuse_overdue(self, queue: Sequence[PlacementInput], view: _Pass) -> list[Place | Refuse]:
        """While no worker has capacity: refuse the requests that can no longer be on time."""
        verdicts = (self._refuse_if_overdue(item, view) for item in queue)
        return [verdict for verdict in verdicts if verdict is not None]

    def _refuse_if_overdue(self, item: PlacementInput, view: _Pass) -> Refuse | None:
        if not self._may_refuse(item) or item.due_s is None or view.now <= item.due_s:
            return None
        table = view.table
        rows = np.flatnonzero(table.is_prefill | table.mixed)
        rows = rows if len(rows) else np.flatnonzero(table.is_decode)
        return Refuse(item.request_id, refuse_late(item, float(np.min(view.wait_s[rows], initial=np.inf)), 0.0))

    def _may_refuse(self, item: PlacementInput) -> bool:
        return self.refuse and not item.resumed

    def _schedule(
        self, item: PlacementInput, state: ClusterState, view: _Pass, late: list[PlacementInput] | None
    ) -> Place | Refuse | None:
        """Place the request in this pass; `late` collects those that would miss their objective."""
        prices = self._price(item, state, view)
        if not np.count_nonzero(prices.allowed):
            if prices.idle_tpot_s is not None and self._may_refuse(item):
                return Refuse(item.request_id, refuse_slow(item, prices.idle_tpot_s))
            return self._refuse_if_overdue(item, view)
        ttft = np.where(prices.allowed, view.wait_s + prices.compute_s, np.inf)
        row = int((view.handicap * ttft).argmin())
        # A resumed request is never late: its client has waited enough.
        due_s = None if item.resumed else item.due_s
        first_token_s = view.now + float(ttft[row]) + self._fill_s(item, row, prices, view)
        if due_s is not None and late is not None and first_token_s > due_s:
            fastest = float(np.min(np.where(prices.allowed, prices.compute_s, np.inf)))
            if self._may_refuse(item) and view.now + fastest > due_s:
                return Refuse(item.request_id, refuse_late(item, float(view.wait_s[row]), fastest))
            late.append(self._yield_to(item, float(prices.compute_s[row]), row, view))
            if late[-1] is item:
                return None
        if not view.has_capacity[row]:
            view.wait_s[row] += prices.compute_s[row]
            view.planned.setdefault(row, []).append((float(prices.compute_s[row]), item))
            return None
        return self._place(item, row, ttft, prices, state, view)

    @staticmethod
    def _fill_s(item: PlacementInput, row: int, prices: _Prices, view: _Pass) -> float:
        """How much longer the step of the prompt's last token takes if others fill it up: it ends for all at once."""
        table = view.table
        behind = -(int(view.pending_prefill[row]) + item.num_tokens - int(prices.cached[row])) % int(table.chunk[row])
        return behind * float(table.prefill_token_s[row]) if table.is_prefill[row] else 0.0

    @staticmethod
    def _yield_to(item: PlacementInput, compute_s: float, row: int, view: _Pass) -> PlacementInput:
        """The request to defer: of those waiting for the worker, the one with most work, unless it is `item`."""
        waiting = view.planned.get(row, [])
        movable = [one for one in waiting if not one[1].resumed]
        longest = max(movable, key=lambda one: (one[0], one[1].request_id), default=None)
        if longest is None or longest[0] <= compute_s:
            return item
        waiting.remove(longest)
        view.wait_s[row] -= longest[0]
        return longest[1]

    def _place(
        self, item: PlacementInput, row: int, ttft: np.ndarray, prices: _Prices, state: ClusterState, view: _Pass
    ) -> Place:
        table = state.table
        local = not table.is_prefill.item(row)
        target = row if local else self._decode_row(item, prices, state, table.names[row])
        tokens = item.num_tokens - prices.cached.item(row)
        candidates = _candidates(item, row, target, ttft, prices, view)
        why = (
            f"{table.names[row]} should answer first, in {1000 * ttft.item(row):.0f} ms: "
            f"{1000 * view.wait_s.item(row):.0f} ms until it begins, {tokens} of {item.num_tokens} tokens to compute"
        )
        self._placed += 1
        view.take(row, target, tokens, item.num_tokens, prices.compute_s.item(row))
        decode = table.names[target] if target is not None and not local else None
        return Place(item.request_id, RoutingDecision(table.names[row], decode, local, why, candidates))

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
        fits = view.pages > new // table.page_size + view.headroom
        room = fits & view.may_start
        may_decode = table.is_decode & room & (tpot <= own)
        idle_tpot_s = None
        allowed = table.is_prefill & fits
        if not view.any_decoder:
            allowed = np.zeros(len(cached), bool)
        elif own < np.inf and not np.count_nonzero(may_decode):
            # All decode workers are full, or at their objectives: the prompt waits rather than violate them.
            idle_tpot_s = self._idle_tpot_s(item, table, own)
            if idle_tpot_s is None or self._may_refuse(item):
                allowed = np.zeros(len(cached), bool)
            else:
                # Waiting would not help, and refusing is not allowed: its objective cannot count.
                own, may_decode = np.inf, table.is_decode & room
        local = view.may_serve_locally & room
        if view.any_prefills:
            # Decode workers whose step meets every objective with a chunk in it; without objectives, one chunk at most.
            chunk_s = view.step_s + work / steps
            if own < np.inf:
                kept = chunk_s <= np.minimum(view.promised_s, TPOT_MARGIN * own)
            else:
                kept = (chunk_s <= view.promised_s) & (view.all_promised | (new <= table.mixed_chunk))
            local &= table.mixed | kept
        return _Prices(cached, compute, tpot, allowed | local, may_decode, idle_tpot_s)

    @staticmethod
    def _idle_tpot_s(item: PlacementInput, table: WorkerTable, own_s: float) -> float | None:
        """The request's decode step on the fastest decode worker, if even an idle one is slower than `own_s`."""
        alone = table.step_s + table.decode_s + table.context_token_s * item.num_tokens
        fastest = float(alone[table.is_decode].min())
        return fastest if fastest > own_s else None

    @staticmethod
    def _decode_row(item: PlacementInput, prices: _Prices, state: ClusterState, source: str) -> int | None:
        """The reachable decode worker with the shortest step that has enough pages, now and at its fullest moment."""
        table = state.table
        sequence = RunningSequence(item.num_tokens, item.output)
        rows = np.flatnonzero(reachable(prices.may_decode, source, state))
        if not len(rows):
            return None
        tpot_s = prices.tpot_s[rows]
        first = int(rows[tpot_s.argmin()])
        if state.workers[table.names[first]].fits_at_peak(sequence):
            return first
        order = rows[tpot_s.argsort(kind="stable")].tolist()
        return next((row for row in order if state.workers[table.names[row]].fits_at_peak(sequence)), first)

    def find_decode(self, item: PlacementInput, state: ClusterState, avoid: str | None, now: float) -> str | None:
        table = state.table
        tpot = table.step_s + table.decode_s * (table.decodes + 1)
        tpot += table.context_token_s * (table.context + item.num_tokens)
        pages = -(-(item.num_tokens + 1) // table.page_size)
        may = table.is_decode & (table.pages_available >= pages) & (table.decodes < table.max_batch)
        if avoid is not None and avoid in state.workers:
            may[state.workers[avoid].row] = False
        empty = np.zeros(len(may))
        row = self._decode_row(item, _Prices(empty, empty, tpot, may, may), state, item.prefill_worker)
        return None if row is None else table.names[row]


def _candidates(
    item: PlacementInput, row: int, target: int | None, ttft: np.ndarray, prices: _Prices, view: _Pass
) -> tuple[Candidate, ...]:
    """The chosen one, then those that would answer soonest."""
    table = view.table
    order = [row, *(one for one in _lowest(ttft, EXPLAINED) if one != row)][:EXPLAINED]
    handed_over_s = None if target is None else prices.tpot_s.item(target)
    found = []
    for one in order:
        ttft_s, local = ttft.item(one), not table.is_prefill.item(one)
        if ttft_s < np.inf:
            tpot_s = prices.tpot_s.item(one) if local or handed_over_s is None else handed_over_s
            uncached = item.num_tokens - prices.cached.item(one)
            found.append(Candidate(table.names[one], local, ttft_s, view.wait_s.item(one), uncached, tpot_s))
    return tuple(found)


def _lowest(values: np.ndarray, count: int) -> list[int]:
    """Where the lowest values are, rising; equal ones in the order they stand in."""
    if len(values) > PARTITIONED:
        bound = np.partition(values, count - 1)[count - 1]
        few = np.flatnonzero(values <= bound)
        return list(few[values[few].argsort(kind="stable")][:count].tolist())
    return list(values.argsort(kind="stable")[:count].tolist())
