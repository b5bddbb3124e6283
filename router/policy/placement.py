"""Which workers serve a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cluster.routing import RoutingDecision
from cluster.worker import RoleName
from router.policy.cluster_state import ClusterState, WorkerView


@dataclass(frozen=True, slots=True)
class PlacementInput:
    """What placement may know of a request: `num_tokens` to compute, `max_new_tokens` that may follow."""

    request_id: str
    num_tokens: int
    max_new_tokens: int


class Placement(Protocol):
    """Chooses workers from a snapshot of the cluster. Deterministic: ties end with the worker's name."""

    def place(self, item: PlacementInput, state: ClusterState, now: float) -> RoutingDecision | None:
        """Both workers, or None while no worker that prefills has room for more work."""
        ...

    def find_decode(self, item: PlacementInput, state: ClusterState, avoid: str | None, now: float) -> str | None:
        """The decode worker to reserve pages on, other than `avoid`, or None while none has room."""
        ...


@dataclass(frozen=True, slots=True)
class LeastPredictedWork:
    """Prefill where the fewest prompt tokens wait; decode where the fewest sequences and the most pages are.

    A prefill worker has room while less than `chunks_ahead` steps of work wait there: enough to keep it busy over
    the round trip to the router, and no more, because what is still queued here can go anywhere.
    """

    chunks_ahead: int = 2

    def place(self, item: PlacementInput, state: ClusterState, now: float) -> RoutingDecision | None:
        prefill, decode = state.pool(RoleName.PREFILL), state.pool(RoleName.DECODE)
        if not (prefill and decode):
            # Without two pools every worker that can decode serves whole requests, so one pool alone still serves.
            return self._place_whole(item, state.pool(RoleName.MIXED, RoleName.DECODE))
        ready = [view for view in prefill if view.uncomputed_tokens < self.chunks_ahead * view.info.chunk_tokens]
        whole = self._place_whole(item, state.pool(RoleName.MIXED))
        if not ready:
            return whole
        source = min(ready, key=lambda view: (view.uncomputed_tokens, view.name))
        if whole and state.workers[whole.prefill].uncomputed_tokens < source.uncomputed_tokens:
            return whole
        target = self.find_decode(item, state, None, now)
        why = f"{source.name} has {source.uncomputed_tokens} prompt tokens waiting, the fewest of {len(prefill)}"
        return RoutingDecision(source.name, target, False, why)

    def _place_whole(self, item: PlacementInput, views: list[WorkerView]) -> RoutingDecision | None:
        ready = [view for view in views if view.sequences < view.info.max_batch and self._fits(item, view)]
        if not ready:
            return None
        best = min(
            ready, key=lambda view: (view.uncomputed_tokens + view.load.context_tokens, view.sequences, view.name)
        )
        return RoutingDecision(best.name, None, True, f"{best.name} has the least work of {len(views)} that decode")

    def find_decode(self, item: PlacementInput, state: ClusterState, avoid: str | None, now: float) -> str | None:
        views = [view for view in state.pool(RoleName.DECODE) if view.name != avoid and self._fits(item, view)]
        ready = [view for view in views if view.sequences < view.info.max_batch]
        if not ready:
            return None
        return min(ready, key=lambda view: (view.sequences, -view.pages_available, view.name)).name

    @staticmethod
    def _fits(item: PlacementInput, view: WorkerView) -> bool:
        return -(-item.num_tokens // view.info.page_size) + 1 <= view.pages_available
