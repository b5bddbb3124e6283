"""TetriInfer's decode choice."""

from __future__ import annotations

from dataclasses import dataclass

from baton.router.policy.baselines.immediate import ImmediatePlacement, in_flight
from baton.router.policy.cluster_state import ClusterState, WorkerView
from baton.router.policy.placement import PlacementInput


@dataclass(eq=False)
class PowerOfTwo(ImmediatePlacement):
    """TetriInfer: least loaded prefill; of two random decode workers whose memory fits the one with fewer long answers.

    Its length classifier is replaced by our predictor, cut at `heavy_tokens`.
    """

    name: str = "power_of_two"
    heavy_tokens: int = 512

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return min(views, key=lambda view: (view.pending_prefill_tokens, view.name))

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        tokens = item.num_tokens + item.output.median
        fitting = [view for view in views if view.pages_available * view.info.page_size >= tokens] or views
        pair = fitting if len(fitting) < 3 else self.rng.sample(fitting, 2)
        return min(pair, key=lambda view: (self._heavy_ratio(view), in_flight(view), view.name))

    def _heavy_ratio(self, view: WorkerView) -> float:
        heavy = sum(one.output.median > self.heavy_tokens for one in view.running.values())
        return heavy / max(len(view.running) - heavy, 1)
