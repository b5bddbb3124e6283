"""The cache-aware policy of sglang's gateway."""

from __future__ import annotations

from dataclasses import dataclass

from baton.router.policy.baselines.immediate import ImmediatePlacement, in_flight
from baton.router.policy.cluster_state import ClusterState, WorkerView
from baton.router.policy.placement import PlacementInput


@dataclass(eq=False)
class CacheAware(ImmediatePlacement):
    """The longest match above a share of the prompt, unless loads differ too much; power of two for decode."""

    name: str = "cache_aware"
    match_share: float = 0.3
    imbalance_requests: int = 64
    imbalance_ratio: float = 1.5

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        loads = [in_flight(view) for view in views]
        least = min(views, key=lambda view: (in_flight(view), view.name))
        if max(loads) - min(loads) > self.imbalance_requests and max(loads) > self.imbalance_ratio * min(loads):
            return least
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        best = max(views, key=lambda view: (cached[view.row], -in_flight(view), view.name))
        return best if cached[best.row] > self.match_share * item.num_tokens else least

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        pair = views if len(views) < 3 else self.rng.sample(views, 2)
        return min(pair, key=lambda view: (in_flight(view), view.name))
