"""Mooncake's Conductor."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.errors import Overloaded
from baton.router.policy.baselines.immediate import ImmediatePlacement, step_with
from baton.router.policy.cluster_state import ClusterState, WorkerView
from baton.router.policy.placement import PlacementInput


@dataclass(eq=False)
class Conductor(ImmediatePlacement):
    """Mooncake's Algorithm 1: the prefill worker of least estimated TTFT, and early rejection on predicted load.

    Its copying of hot prefixes between workers is left out, because our workers recompute instead; the estimate counts
    what each worker has itself.
    """

    name: str = "conductor"

    def _ttft(self, item: PlacementInput, view: WorkerView, cached: int, now: float) -> float:
        costs = view.latency.costs
        queue_s = max(view.backlog_ends_s - now, 0.0)
        return queue_s + costs.prefill_s(item.num_tokens - cached, cached, view.info.chunk_tokens)

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        return min(views, key=lambda view: (self._ttft(item, view, int(cached[view.row]), now), view.name))

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return min(views, key=lambda view: (step_with(view, item), view.name))

    def refuse(
        self,
        item: PlacementInput,
        prefill: list[WorkerView],
        decode: list[WorkerView],
        state: ClusterState,
        now: float,
    ) -> Overloaded | None:
        source = self.choose_prefill(item, prefill, state, now)
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        ttft = self._ttft(item, source, int(cached[source.row]), now)
        tpot = min(step_with(view, item) for view in decode)
        objectives = item.objectives
        if (objectives.ttft_s is not None and ttft > objectives.ttft_s) or (
            objectives.tpot_s is not None and tpot > objectives.tpot_s
        ):
            sentence = "Predicted to miss its objectives; try again later."
            return Overloaded(sentence, retry_after_s=ttft, cause="ttft_objective")
        return None
