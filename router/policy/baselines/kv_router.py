"""The cost function of Dynamo's KV router."""

from __future__ import annotations

import math
from dataclasses import dataclass

from baton.router.policy.baselines.immediate import ImmediatePlacement
from baton.router.policy.cluster_state import ClusterState, WorkerView
from baton.router.policy.placement import PlacementInput


@dataclass(eq=False)
class KvRouter(ImmediatePlacement):
    """Dynamo's KV router: blocks to prefill (less the overlap) plus blocks being decoded, the least wins.

    With a temperature above 0 a softmax over the normalised negative costs is drawn from.
    """

    name: str = "kv_router"
    overlap_credit: float = 1.0
    prefill_scale: float = 1.0
    temperature: float = 0.0

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        return self._pick(views, [self._cost(item, view, int(cached[view.row])) for view in views])

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        # The decode leg of disaggregated serving: no credit for overlap, prompts are not counted.
        blocks = [view.context_tokens / view.info.page_size for view in views]
        return self._pick(views, blocks)

    def _cost(self, item: PlacementInput, view: WorkerView, cached: int) -> float:
        size = view.info.page_size
        prefill = (view.pending_prefill_tokens + item.num_tokens) / size
        adjusted = max(prefill - self.overlap_credit * cached / size, 0.0)
        decode = view.context_tokens / size
        return self.prefill_scale * adjusted + decode + item.num_tokens / size

    def _pick(self, views: list[WorkerView], costs: list[float]) -> WorkerView:
        if self.temperature <= 0.0:
            return min(zip(costs, views, strict=True), key=lambda pair: (pair[0], pair[1].name))[1]
        low, high = min(costs), max(costs)
        scale = (high - low) or 1.0
        weights = [math.exp(-(cost - low) / scale / self.temperature) for cost in costs]
        return self.rng.choices(views, weights)[0]
