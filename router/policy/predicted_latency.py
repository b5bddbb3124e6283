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
from dataclasses import dataclass

import numpy as np

from baton.router.policy.admission import refuse_late, refuse_slow
from baton.router.policy.cluster_state import ClusterState, RunningSequence
from baton.router.policy.decode_target import find_decode
from baton.router.policy.picture import Picture
from baton.router.policy.placement import Place, PlacementInput, Refuse
from baton.router.policy.prices import idle_step_s, price
from baton.router.policy.schedule import Schedule

SCANNED = 64  # queued requests examined in one pass
STARVING_S, STARVING_EVERY = 10.0, 8  # requests overdue this long get one placement in so many


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
        prices = price(scanned, state, picture, self.refuse)
        self.tight = prices.tight
        schedule = Schedule(scanned, state, picture, prices)
        starving = self._starving(scanned, now)
        verdicts: list[Place | Refuse] = []
        late: list[int] = []
        for index, item in enumerate(scanned):
            if not picture.any_room():
                return verdicts
            verdicts += self._decide_one(index, schedule, None if item is starving else late)
        for index in late if picture.any_room() else ():
            verdicts += self._decide_one(index, schedule, None)
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
