"""Automatic changes of the pools: migrations for relief, and role switches where `auto` is on. Pure.

An operator has priority: no change starts while an operation on the pools runs, nor shortly after.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.protocol.worker import RoleName
from baton.router.core.dispatch import Dispatch
from baton.router.core.events import Migrate
from baton.router.core.length_drift import RecentAnswers
from baton.router.core.live_request import LiveRequest
from baton.router.core.operation import Operation, Rebalance
from baton.router.core.operations import Action, Operations
from baton.router.core.pool_steps import POOLS
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.decode_target import relief
from baton.router.policy.placement import PlacementInput
from baton.router.policy.planner.pool_planner import Advice, PoolPlanner

LOOK_EVERY_S = 1.0
CONFIRMED = 3  # evaluations in a row that must agree on the direction
REST_S = 5.0  # after a switch of its own
YIELD_S = 300.0  # after an operator's operation on the pools
OURS = "auto-"


@dataclass(eq=False)
class Automation:
    """Joins planner and operations; `tick` is called a few times a second."""

    state: ClusterState
    dispatch: Dispatch
    operations: Operations
    records: dict[str, LiveRequest]
    auto: bool = False
    planner: PoolPlanner = field(default_factory=PoolPlanner)
    recent: RecentAnswers = field(default_factory=RecentAnswers)
    _looked_s: float = float("-inf")
    _wanted: list[int] = field(default_factory=list)  # moves to the prefill pool (or from it) of the last looks
    _rest_until_s: float = float("-inf")
    _watched: Operation | None = None  # the latest operation on the pools
    _had: set[RoleName] = field(default_factory=set)  # pools that have had workers
    _count: int = 0

    def on_arrival(self, live: LiveRequest, item: PlacementInput, now: float) -> None:
        """A request has come."""
        self.recent.add(live, now)
        new = item.num_tokens - self.state.most_cached(item.page_keys, item.num_tokens)
        self.planner.on_arrival(item.num_tokens, new, item.output.remaining(), item.objectives.tpot_s, now)

    def tick(self, now: float) -> list[Action]:
        """The automatic actions that are due."""
        actions: list[Action] = []
        records = self.records
        move = relief(self.state, lambda request_id: request_id in records and records[request_id].may_move(now))
        if move is not None:
            actions.append((move.request_id, Migrate(move.worker)))
        wish = self.wish(now) if self.auto else None
        if wish is not None:
            self._count += 1
            self._watched = self.operations.start(f"{OURS}{self._count}", wish, False, now)
        return actions

    def look(self, now: float) -> Advice | None:
        """The planner's advice now."""
        drift, local = self.recent.drift(now), self.dispatch.placement.serves_locally
        return self.planner.advise(self.state, self.dispatch.waiting, drift, now, local)

    def wish(self, now: float) -> Rebalance | None:
        """The split to change to now, if any."""
        if self._busy(now):
            return None
        prefill, decode = (len(self.state.pool(role)) for role in POOLS)
        self._had |= {role for role, count in zip(POOLS, (prefill, decode), strict=True) if count}
        if not prefill or not decode:
            return self._refill(prefill, decode, now)
        if now < self._looked_s + LOOK_EVERY_S:
            return None
        self._looked_s = now
        advice = self.look(now)
        moves = advice.prefill - prefill if advice else 0
        self._wanted = [*self._wanted, moves][-CONFIRMED:]
        confirmed = len(self._wanted) == CONFIRMED and all(one * moves > 0 for one in self._wanted)
        if advice is None or not confirmed or now < self._rest_until_s:
            return None
        self._wanted.clear()
        return Rebalance(advice.prefill, advice.decode)

    def _refill(self, prefill: int, decode: int, now: float) -> Rebalance | None:
        """A pool that has lost its last worker gets another at once, if the other pool has two."""
        if len(self._had) < len(POOLS) or prefill + decode < 2:
            return None
        advice = self.look(now)
        if advice is not None:
            return Rebalance(advice.prefill, advice.decode)
        return Rebalance(prefill - 1, 1) if prefill else Rebalance(1, decode - 1)

    def _busy(self, now: float) -> bool:
        """Whether an operation on the pools is running; records what the last one cost."""
        last, self._watched = self._watched, self.operations.on_pools
        if self._watched is None and last is not None:
            ours = last.operation_id.startswith(OURS)
            for step in last.steps:
                if step.to_role is not None and step.ended_s is not None:
                    self.planner.on_switched(step.elapsed_s(now))
            self._rest_until_s = now + (REST_S if ours else YIELD_S)
            self._wanted.clear()
        return self._watched is not None
