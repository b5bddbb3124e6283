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
from baton.router.policy.prices import Picture, Prices, idle_step_s, price

SCANNED = 64  # queued requests examined in one pass
STARVING_S, STARVING_EVERY = 10.0, 8  # requests overdue this long get one placement in so many
PARTITIONED = 256  # workers above which the few best are found without sorting all
EXPLAINED = 5  # candidates kept with a decision


@dataclass(slots=True, eq=False)
class Schedule:
    """The requests a pass looks at, their prices, and where those that have to wait are planned."""

    queue: Sequence[PlacementInput]
    state: ClusterState
    picture: Picture
    prices: Prices
    _planned: dict[int, list[tuple[float, int]]] = field(default_factory=dict)  # row → (seconds, index) waiting there
    _taken: tuple[int, int | None, int, int, float] | None = None  # what the picture lacks of the last placement

    def any_room(self) -> bool:
        """Whether any worker can take work, after what was placed so far."""
        if self._taken is not None:
            self.picture.take(*self._taken)
            target, self._taken = self._taken[1], None
            if target is not None:
                self.prices.update(target)
        return self.picture.any_room()

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
        return longest[1]

    def place(self, index: int, row: int, ttft_s: np.ndarray) -> Place:
        """Start the request on the worker."""
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
        self.tight = True
        if not picture.any_room():
            refusals = (self._refuse_if_overdue(item, picture) for item in queue)
            return [refusal for refusal in refusals if refusal is not None]
        picture.branch()
        scanned = queue[: self.scanned]
        schedule = Schedule(scanned, state, picture, price(scanned, state, picture, self.refuse))
        starving = self._starving(scanned, now)
        verdicts: list[Place | Refuse] = []
        late: list[int] = []
        for index, item in enumerate(scanned):
            if not schedule.any_room():
                return verdicts
            verdicts += self._decide_one(index, schedule, None if item is starving else late)
        for index in late if late and schedule.any_room() else ():
            verdicts += self._decide_one(index, schedule, None)
        if len(verdicts) < len(scanned) and schedule.any_room():
            self.tight = schedule.prices.tight
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
        picture, item = schedule.picture, schedule.queue[index]
        start_s = schedule.prices.start_s[index]
        ttft_s = picture.wait_s + start_s
        row = int((picture.handicap * ttft_s).argmin())
        if ttft_s[row] == np.inf:
            refusal = self._refuse_if_slow(item, picture) or self._refuse_if_overdue(item, picture)
            return [] if refusal is None else [refusal]
        # A resumed request is never late: its client has waited enough.
        due_s = None if item.resumed else item.due_s
        first_token_s = picture.now + float(ttft_s[row]) + schedule.fill_s(index, row)
        if due_s is not None and late is not None and first_token_s > due_s:
            fastest_s = float(start_s.min())
            if self._may_refuse(item) and picture.now + fastest_s > due_s:
                return [Refuse(item.request_id, refuse_late(item, float(picture.wait_s[row]), fastest_s))]
            late.append(schedule.give_way(index, row))
            if late[-1] == index:
                return []
        if not picture.has_room[row]:
            schedule.plan(index, row)
            return []
        self._placed += 1
        return [schedule.place(index, row, ttft_s)]

    def _refuse_if_slow(self, item: PlacementInput, picture: Picture) -> Refuse | None:
        """The refusal of a request whose TPOT objective not even an idle worker meets."""
        objective_s = item.objectives.tpot_s
        if objective_s is None or not picture.any_decode or not self._may_refuse(item):
            return None
        idle_s = idle_step_s(item.num_tokens, picture.table)
        return Refuse(item.request_id, refuse_slow(item, idle_s)) if idle_s > objective_s else None
