"""Common base of other systems' policies: a request is sent on arrival, and workers hold the queues.

Every request is handed off from a prefill to a decode worker; without two pools, decode workers run whole
requests. Formulas and sources: docs/policies.md.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.protocol.errors import Overloaded
from baton.protocol.worker import RoleName
from baton.router.policy.cluster_state import ClusterState, WorkerView
from baton.router.policy.placement import Place, PlacementInput, Refuse, RoutingDecision


@dataclass(eq=False)
class ImmediatePlacement(ABC):
    """Common base: place the first request in line now. A policy chooses among views, given in order of names."""

    seed: int = 0
    name: str = ""
    serves_locally: bool = False
    scanned: int = 1
    tight: bool = True
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def decide(self, queue: Sequence[PlacementInput], state: ClusterState, now: float) -> list[Place | Refuse]:
        if not queue:
            return []
        item = queue[0]
        decode = state.pool(RoleName.DECODE)
        prefill = [view for view in state.pool(RoleName.PREFILL) if not state.reaches_no_decode(view)]
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
        """The policy's choice, made once the prompt is being computed: pages reserved earlier would be idle."""
        source = state.workers.get(item.prefill_worker)
        if source is not None and item.request_id in source.assigned and item.request_id != next(iter(source.assigned)):
            return None
        pages = -(-(item.num_tokens + 1) // max((view.info.page_size for view in state.workers.values()), default=1))
        unreachable = {avoid, *state.unreachable.get(item.prefill_worker, ())}
        views = [view for view in state.pool(RoleName.DECODE) if view.name not in unreachable]
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
        """Choose the prefill worker; `views` is not empty."""

    @abstractmethod
    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        """Choose the decode worker; `views` is not empty."""


def in_flight(view: WorkerView) -> int:
    """Requests assigned to a worker and not finished."""
    return view.sequences


def step_with(view: WorkerView, item: PlacementInput) -> float:
    """Predicted decode step of a worker with the request beside its others, in seconds."""
    return view.decode_step_s(1, item.num_tokens)
