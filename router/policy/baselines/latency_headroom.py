"""llm-d's choice by latency headroom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baton.protocol.worker import RoleName
from baton.router.policy.baselines.immediate import ImmediatePlacement, in_flight, step_with
from baton.router.policy.cluster_state import ClusterState, WorkerView
from baton.router.policy.placement import Place, PlacementInput, Refuse, RoutingDecision


@dataclass(eq=False)
class LatencyHeadroom(ImmediatePlacement):
    """llm-d: pairs scored by predicted headroom under the objectives, 0.8 TTFT and 0.2 TPOT, the closest fit first.

    The decode worker is chosen first. Prefill goes elsewhere only when enough of the prompt is not cached there: else
    the decode worker serves the whole request.
    """

    name: str = "latency_headroom"
    serves_locally: bool = True
    ttft_weight: float = 0.8
    tpot_weight: float = 0.2
    remote_from_tokens: int = 256

    def decide(self, queue: Sequence[PlacementInput], state: ClusterState, now: float) -> list[Place | Refuse]:
        decode = state.pool(RoleName.DECODE)
        if queue and decode and state.pool(RoleName.PREFILL):
            item = queue[0]
            target = self.choose_decode(item, decode, state, now)
            uncached = item.num_tokens - state.cached_on(target.name, item.page_keys, item.num_tokens)
            if uncached < self.remote_from_tokens:
                local = RoutingDecision(target.name, None, True, f"{uncached} tokens are not cached there")
                return [Place(item.request_id, local)]
        return super().decide(queue, state, now)

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        return self._closest_fit(views, [(self._ttft(item, view, int(cached[view.row]), now), 0.0) for view in views])

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        objective = item.objectives.tpot_s or 0.1
        headrooms = [
            (self._ttft(item, view, int(cached[view.row]), now), objective - step_with(view, item)) for view in views
        ]
        return self._closest_fit(views, headrooms)

    @staticmethod
    def _ttft(item: PlacementInput, view: WorkerView, cached: int, now: float) -> float:
        """Headroom under the TTFT objective if the prompt were computed there."""
        new, queue_s = item.num_tokens - cached, max(view.backlog_ends_s - now, 0.0)
        ttft = queue_s + view.latency.costs.prefill_s(new, cached, view.info.chunk_tokens)
        return (item.objectives.ttft_s or 1.0) - ttft

    def _closest_fit(self, views: list[WorkerView], headrooms: list[tuple[float, float]]) -> WorkerView:
        """The least positive headroom; when all are negative the idle ones, then the least violation."""

        def normalised(index: int) -> list[float]:
            values = [headroom[index] for headroom in headrooms]
            span = (max(values) - min(values)) or 1.0
            return [(value - min(values)) / span for value in values]

        scores = [
            self.ttft_weight * ttft + self.tpot_weight * tpot
            for ttft, tpot in zip(normalised(0), normalised(1), strict=True)
        ]
        options = list(zip(views, headrooms, scores, strict=True))
        positive = [option for option in options if min(option[1]) >= 0.0]
        if positive:
            return min(positive, key=lambda option: (option[2], option[0].name))[0]
        return min(options, key=lambda option: (in_flight(option[0]) > 0, -option[2], option[0].name))[0]
