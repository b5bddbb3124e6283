"""What the policies of other systems share: a request is sent on the moment it arrives, queues are the workers'.

Every request is handed over from a prefill to a decode worker; where there are no two pools, workers that decode serve
whole requests. Formulas and sources: docs/policies.md.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.protocol.errors import Overloaded
from baton.protocol.worker import RoleName
from baton.router.policy.cluster_state import ClusterState, WorkerView
from baton.router.policy.placement import Place, PlacementInput, Refuse
from baton.router.policy.routing import RoutingDecision


@dataclass(eq=False)
class ImmediatePlacement(ABC):
    """What the peers share: place the first in line now. A policy chooses among views, given in the order of names."""

    seed: int = 0
    name: str = ""
    serves_whole: bool = False
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def decide(self, queue: Sequence[PlacementInput], state: ClusterState, now: float) -> list[Place | Refuse]:
        if not queue:
            return []
        item = queue[0]
        decode = state.pool(RoleName.DECODE)
        prefill = [view for view in state.pool(RoleName.PREFILL) if not state.stranded(view)]
        if prefill and decode:
            refusal = None if item.resumed else self.refuse(item, prefill, decode, state, now)
            if refusal is not None:
                return [Refuse(item.request_id, refusal)]
            source = self.choose_prefill(item, prefill, state, now)
            return [Place(item.request_id, RoutingDecision(source.name, None, False, f"chosen by {self.name}"))]
        views = state.pool(RoleName.MIXED, RoleName.DECODE)
        if not views:
            return []
        view = self.choose_prefill(item, views, state, now)
        return [Place(item.request_id, RoutingDecision(view.name, None, True, f"chosen by {self.name}"))]

    def find_decode(self, item: PlacementInput, state: ClusterState, avoid: str | None, now: float) -> str | None:
        """By the policy's own choice, once the prompt is being computed: pages reserved earlier would lie idle."""
        source = state.workers.get(item.prefill_worker)
        if source is not None and item.request_id in source.assigned and item.request_id != next(iter(source.assigned)):
            return None
        pages = -(-(item.num_tokens + 1) // max((view.info.page_size for view in state.workers.values()), default=1))
        apart = {avoid, *state.apart.get(item.prefill_worker, ())}
        views = [view for view in state.pool(RoleName.DECODE) if view.name not in apart]
        views = [view for view in views if view.pages_available >= pages]
        return self.choose_decode(item, views, state, now).name if views else None

    def refuse(
        self,
        item: PlacementInput,
        prefill: list[WorkerView],
        decode: list[WorkerView],
        state: ClusterState,
        now: float,
    ) -> Overloaded | None:
        return None

    @abstractmethod
    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        """Who computes the prompt; `views` is not empty."""

    @abstractmethod
    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        """Who generates; `views` is not empty."""


def in_flight(view: WorkerView) -> int:
    """Requests a worker has been given and has not finished."""
    return view.sequences


def step_with(view: WorkerView, item: PlacementInput) -> float:
    """Predicted decode step of a worker with the request beside its others, in seconds."""
    context = sum(one.tokens for one in view.running.values()) + item.num_tokens
    return view.latency.costs.seconds(0, 0, len(view.running) + 1, context)
