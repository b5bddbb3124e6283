"""Policies that ignore the prompt: round-robin, random, join the shortest queue."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.router.policy.baselines.immediate import ImmediatePlacement, in_flight
from baton.router.policy.cluster_state import ClusterState, WorkerView
from baton.router.policy.placement import PlacementInput


@dataclass(eq=False)
class RoundRobin(ImmediatePlacement):
    name: str = "round_robin"
    _next: dict[str, int] = field(default_factory=dict)

    def _turn(self, pool: str, views: list[WorkerView]) -> WorkerView:
        index = self._next.get(pool, 0)
        self._next[pool] = index + 1
        return views[index % len(views)]

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return self._turn("prefill", views)

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return self._turn("decode", views)


@dataclass(eq=False)
class Random(ImmediatePlacement):
    name: str = "random"

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return self.rng.choice(views)

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return self.rng.choice(views)


@dataclass(eq=False)
class LeastLoaded(ImmediatePlacement):
    """Join the shortest queue: the fewest requests in flight."""

    name: str = "least_loaded"

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return min(views, key=lambda view: (in_flight(view), view.name))

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return min(views, key=lambda view: (in_flight(view), view.name))
