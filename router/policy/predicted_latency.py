"""Baton's own placement: every worker is a candidate, priced by its predicted latency.

The queue stays here, so each pass schedules it from scratch over all workers: requests in order of due time,
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

from baton.router.policy.cluster_state import ClusterState, RunningSequence
from baton.router.policy.decode_target import decode_target, find_decode
from baton.router.policy.placement import (
    Candidate,
    Place,
    PlacementInput,
    Refuse,
    RoutingDecision,
    refuse_late,
    refuse_slow,
)
from baton.router.policy.prices import Picture, Prices, idle_steps_s, price

SCANNED = 64  # queued requests examined in one pass
STARVING_S, STARVING_EVERY = 10.0, 8  # requests overdue this long get one placement in so many
PARTITIONED = 256  # workers above which the few best are found without sorting all
EXPLAINED = 5  # candidates kept with a decision
STALE = -1


@dataclass(slots=True, eq=False)
class Schedule:
    """The requests a pass looks at, their prices, and where those that have to wait are planned."""

    queue: Sequence[PlacementInput]
    state: ClusterState
    picture: Picture
    prices: Prices
    _planned: dict[int, list[tuple[float, int]]] = field(default_factory=dict)  # row → (seconds, index) waiting there
    _taken: tuple[int, int | None, int, int, float] | None = None  # what the picture lacks of the last placement
    _first: np.ndarray = field(init=False)  # by request: the row that would answer first, STALE where that has changed
    _first_s: np.ndarray = field(init=False)  # when, its handicap included
    _slower: set[int] = field(default_factory=set)  # rows that have got more work since

    def __post_init__(self) -> None:
        self._find_first()

    def _find_first(self) -> None:
        """Look at all requests and workers at once."""
        seconds = self.picture.table.handicap * (self.picture.wait_s + self.prices.start_s)
        self._first = seconds.argmin(axis=1)
        self._first_s = seconds[np.arange(len(seconds)), self._first]
        self._slower.clear()

    def first(self, index: int) -> int:
        """The row of the worker that would answer the request first."""
        row = int(self._first[index])
        if row == STALE or row in self._slower:
            row = int((self.picture.table.handicap * self.ttft_s(index)).argmin())
        return row

    def ttft_s(self, index: int) -> np.ndarray:
        """By row, in how many seconds the request's first token would come."""
        ttft_s: np.ndarray = self.picture.wait_s + self.prices.start_s[index]
        return ttft_s

    def any_room(self) -> bool:
        """Whether any worker can take work, after what was placed so far."""
        if self._taken is None or not self.picture.any_room():
            return self.picture.any_room()
        (row, target, tokens, context, compute_s), self._taken = self._taken, None
        self._slower.add(row)
        self.picture.take_prompt(row, tokens, compute_s)
        if target is not None and self.picture.any_room():
            self.picture.take_sequence(target, tokens, context)
            self._update(target)
        return self.picture.any_room()

    def _update(self, row: int) -> None:
        """Price one worker again."""
        picture = self.picture
        if self.prices.update(row):
            self._find_first()
            return
        self._slower.add(row)
        seconds = picture.table.handicap[row] * (picture.wait_s[row] + self.prices.start_s[:, row])
        self._first[seconds <= self._first_s] = STALE  # with more to decode it computes prompts in smaller chunks

    def fill_s(self, index: int, row: int) -> float:
        """How much longer the step of the prompt's last token takes if others fill it up: it ends for all at once."""
        table = self.picture.table
        if not table.is_prefill[row]:
            return 0.0
        uncached = self.queue[index].num_tokens - int(self.prices.cached[index, row])
        behind = -(int(table.pending_prefill[row]) + uncached) % int(table.chunk[row])
        return behind * float(table.prefill_token_s[row])

    def plan(self, index: int, row: int) -> None:
        """The request waits for the worker."""
        compute_s = float(self.prices.compute_s[index, row])
        self.picture.wait_s[row] += compute_s
        self._slower.add(row)
        self._planned.setdefault(row, []).append((compute_s, index))

    def give_way(self, index: int, row: int) -> int:
        """The request to defer: of those waiting for the worker, the one with most work, unless it is this one."""
        waiting = self._planned.get(row, [])
        movable = [one for one in waiting if not self.queue[one[1]].resumed]
        longest = max(movable, key=lambda one: (one[0], self.queue[one[1]].request_id), default=None)
        if longest is None or longest[0] <= self.prices.compute_s[index, row]:
            return index
        waiting.remove(longest)
        self.picture.wait_s[row] -= longest[0]
        self._first.fill(STALE)
        return longest[1]

    def place(self, index: int, row: int) -> Place:
        """Start the request on the worker."""
        ttft_s = self.ttft_s(index)
        item, prices, picture = self.queue[index], self.prices, self.picture
        table, names = picture.table, picture.table.names
        local = not table.is_prefill[row]
        target: int | None = row
        if not local:
            sequence = RunningSequence(item.num_tokens, item.output)
            target = decode_target(prices.decode[index], prices.step_s[index], names[row], sequence, self.state)
        tokens = item.num_tokens - int(prices.cached[index, row])
        candidates = self._candidates(index, row, target, ttft_s)
        why = (
            f"{names[row]} should answer first, in {1000 * ttft_s[row]:.0f} ms: "
            f"{1000 * picture.wait_s[row]:.0f} ms until it begins, {tokens} of {item.num_tokens} tokens to compute"
        )
        self._taken = row, target, tokens, item.num_tokens, float(prices.compute_s[index, row])
        decode = None if local or target is None else names[target]
        return Place(item.request_id, RoutingDecision(names[row], decode, local, why, candidates))

    def _candidates(self, index: int, row: int, target: int | None, ttft_s: np.ndarray) -> tuple[Candidate, ...]:
        """The chosen one, then those that would answer soonest."""
        item, prices, table = self.queue[index], self.prices, self.picture.table
        order = [row, *(one for one in _lowest(ttft_s, EXPLAINED) if one != row)][:EXPLAINED]
        found = []
        for one in order:
            if ttft_s[one] < np.inf:
                local = not table.is_prefill[one]
                step_s = float(prices.step_s[index, one if local or target is None else target])
                uncached = item.num_tokens - int(prices.cached[index, one])
                wait_s = float(self.picture.wait_s[one])
                found.append(Candidate(table.names[one], local, float(ttft_s[one]), wait_s, uncached, step_s))
        return tuple(found)


def _lowest(values: np.ndarray, count: int) -> list[int]:
    """Where the lowest values are, rising; equal ones in the order they stand in."""
    if len(values) > PARTITIONED:
        bound = np.partition(values, count - 1)[count - 1]
        few = np.flatnonzero(values <= bound)
        return list(few[values[few].argsort(kind="stable")][:count].tolist())
    return list(values.argsort(kind="stable")[:count].tolist())


@dataclass(slots=True, eq=False)
class PredictedLatency:
    """`refuse`: whether requests that can no longer meet their TTFT objective are refused."""

    refuse: bool = True
    name: str = "predicted_latency"
    serves_locally: bool = True
    scanned: int = SCANNED
    tight: bool = True
    _placed: int = 0

    def decide(self, queue: Sequence[PlacementInput], state: ClusterState, now: float) -> list[Place | Refuse]:
        if not queue:
            return []
        picture = Picture(state.table, now)
        self.tight = picture.any_room()
        if not self.tight:
            refusals = (self._refuse_if_overdue(item, picture) for item in queue)
            return [refusal for refusal in refusals if refusal is not None]
        scanned = queue[: self.scanned]
        schedule = Schedule(scanned, state, picture, price(scanned, state, picture, self.refuse))
        verdicts = self._place(schedule, now) if schedule.prices.may_start else self._refuse_hopeless(schedule)
        if len(verdicts) < len(scanned) and schedule.any_room():
            self.tight = schedule.prices.tight
        return verdicts

    def _place(self, schedule: Schedule, now: float) -> list[Place | Refuse]:
        """Place what can start."""
        starving = self._starving(schedule.queue, now)
        verdicts: list[Place | Refuse] = []
        late: list[int] = []
        for index, item in enumerate(schedule.queue):
            if not schedule.any_room():
                return verdicts
            verdicts += self._decide_one(index, schedule, None if item is starving else late)
        for index in late if late and schedule.any_room() else ():
            verdicts += self._decide_one(index, schedule, None)
        return verdicts

    def _refuse_hopeless(self, schedule: Schedule) -> list[Place | Refuse]:
        """Refuse what cannot be on time any more, where nothing can start."""
        fastest_s = schedule.prices.start_s.min(axis=1)
        due_s = np.array([np.inf if item.due_s is None else item.due_s for item in schedule.queue])
        verdicts: list[Place | Refuse] = []
        for index in np.flatnonzero((fastest_s == np.inf) | (schedule.picture.now + fastest_s > due_s)).tolist():
            verdicts += self._decide_one(index, schedule, [])
        return verdicts

    def find_decode(self, item: PlacementInput, state: ClusterState, avoid: str | None, now: float) -> str | None:
        sequence = RunningSequence(item.num_tokens, item.output)
        return find_decode(item.num_tokens, sequence, state, item.prefill_worker, avoid)

    def _starving(self, queue: Sequence[PlacementInput], now: float) -> PlacementInput | None:
        """The starvation guard: every so often the request that is overdue longest.

        Without refusals, requests that are on time would otherwise pass the late ones as long as they arrive.
        """
        if self._placed % STARVING_EVERY:
            return None
        overdue = [item for item in queue if item.due_s is not None and now > item.due_s + STARVING_S]
        return min(overdue, key=lambda item: (item.due_s, item.request_id), default=None)

    def _refuse_if_overdue(self, item: PlacementInput, picture: Picture) -> Refuse | None:
        """The refusal of a request that no worker can take and that can no longer be on time."""
        if not self._may_refuse(item) or item.due_s is None or picture.now <= item.due_s:
            return None
        table = picture.table
        rows = np.flatnonzero(table.is_prefill | table.mixed)
        rows = rows if len(rows) else np.flatnonzero(table.is_decode)
        wait_s = float(np.min(picture.wait_s[rows], initial=np.inf))
        return Refuse(item.request_id, refuse_late(item, wait_s, 0.0))

    def _may_refuse(self, item: PlacementInput) -> bool:
        return self.refuse and not item.resumed

    def _decide_one(self, index: int, schedule: Schedule, late: list[int] | None) -> list[Place | Refuse]:
        """Place a request in this pass, if it can start; `late` collects those that would miss their objective."""
        picture, item, row = schedule.picture, schedule.queue[index], schedule.first(index)
        start_s = float(schedule.prices.start_s[index, row])
        if start_s == np.inf:
            refusal = self._refuse_if_slow(item, picture) or self._refuse_if_overdue(item, picture)
            return [] if refusal is None else [refusal]
        # A resumed request is never late: its client has waited enough.
        due_s = None if item.resumed or late is None else item.due_s
        if due_s is not None and late is not None:
            wait_s = float(picture.wait_s[row])
            first_token_s = picture.now + wait_s + start_s + schedule.fill_s(index, row)
            if first_token_s > due_s:
                fastest_s = float(schedule.prices.start_s[index].min())
                if self._may_refuse(item) and picture.now + fastest_s > due_s:
                    return [Refuse(item.request_id, refuse_late(item, wait_s, fastest_s))]
                late.append(schedule.give_way(index, row))
                if late[-1] == index:
                    return []
        if not picture.table.has_room[row]:
            schedule.plan(index, row)
            return []
        self._placed += 1
        return [schedule.place(index, row)]

    def _refuse_if_slow(self, item: PlacementInput, picture: Picture) -> Refuse | None:
        """The refusal of a request whose TPOT objective not even an idle worker meets."""
        objective_s = item.objectives.tpot_s
        if objective_s is None or not picture.table.any_decode or not self._may_refuse(item):
            return None
        idle_s = float(idle_steps_s(np.array([item.num_tokens]), picture.table)[0])
        return Refuse(item.request_id, refuse_slow(item, idle_s)) if idle_s > objective_s else None
