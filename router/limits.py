"""Bounds of what the router holds, waits for and takes on."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from cluster.errors import InvalidRequest, NoWorkers, PromptTooLong
from cluster.request import Request
from cluster.worker import RoleName
from router.operation import PROBE
from router.policy.cluster_state import ClusterState


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """Set by the configuration."""

    max_queued: int = 4096
    report_interval_s: float = 0.5
    lost_after_s: float = 2.0  # silence after which a worker is given up
    kill_after_s: float = 10.0  # and, if it does not come back, its process is ended


def check_id(request_id: str, live: Container[str]) -> None:
    """Raise `InvalidRequest` when no new request may be called so."""
    if request_id.startswith(PROBE):
        raise InvalidRequest(f"Request ids that begin with {PROBE!r} are the router's own; choose another.")
    if request_id in live:
        raise InvalidRequest(f"Request id {request_id!r} is in use by a live request; choose another.")


def check_capacity(request: Request, state: ClusterState) -> None:
    """Raise `NoWorkers` or `PromptTooLong` when no worker could ever serve the request."""
    if not state.pool(RoleName.DECODE, RoleName.MIXED):
        raise NoWorkers("No worker that decodes is registered; start one or wait until it has loaded the model.")
    capacity = max(view.info.capacity_tokens for view in state.pool(RoleName.DECODE, RoleName.MIXED))
    prefill = state.pool(RoleName.PREFILL)
    if prefill and not state.pool(RoleName.MIXED):
        capacity = min(capacity, max(view.info.capacity_tokens for view in prefill))
    if request.max_total_tokens > capacity:
        raise PromptTooLong(
            f"Prompt and max_tokens come to {request.max_total_tokens} tokens; a worker's pages hold "
            f"{capacity}. Ask for fewer tokens or give the workers more pages."
        )
