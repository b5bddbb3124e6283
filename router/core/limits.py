"""The router's limits and timeouts."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from baton.config import defaults
from baton.protocol.errors import InvalidRequest, NoWorkers, Overloaded, PromptTooLong
from baton.protocol.request import Request
from baton.protocol.worker import RoleName
from baton.router.core.operation import PROBE
from baton.router.policy.cluster_state import ClusterState


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """Set by the configuration."""

    max_queued: int = defaults.MAX_QUEUED
    report_interval_s: float = 0.5
    lost_after_s: float = defaults.LOST_AFTER_S  # silence after which a worker is given up
    kill_after_s: float = 10.0  # and, if it does not return, its process is killed
    no_workers_grace_s: float = defaults.NO_WORKERS_GRACE_S  # how long requests wait for a decode worker
    claim_within_s: float = defaults.CLAIM_WITHIN_S  # for clients of sequences that outlived a router; 0: none may
    resume_wait_s: float = 2.0  # after the start: how long resumed requests wait for workers to join


def check_id(request_id: str, live: Container[str]) -> None:
    """Raise `InvalidRequest` unless a new request may have this id."""
    if request_id.startswith(PROBE):
        raise InvalidRequest(f"Request ids that begin with {PROBE!r} are the router's own; choose another.")
    if request_id in live:
        raise InvalidRequest(f"Request id {request_id!r} is in use by a live request; choose another.")


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits of one request. 0: the model's limit only."""

    max_prompt_tokens: int = 0
    max_streams_per_tenant: int = 0

    def most_prompt_tokens(self, context_tokens: int) -> int:
        """The longest prompt that could be accepted."""
        return min(self.max_prompt_tokens or context_tokens, context_tokens)

    def check_prompt(self, num_tokens: int) -> None:
        """Raise `PromptTooLong` for a prompt that is longer than the configuration allows."""
        if self.max_prompt_tokens and num_tokens > self.max_prompt_tokens:
            raise PromptTooLong(
                f"The prompt has {num_tokens} tokens; this cluster accepts {self.max_prompt_tokens} "
                "(access.max_prompt_tokens)."
            )


@dataclass(slots=True, eq=False)
class TenantStreams:
    """The number of live streams of each tenant."""

    most: int  # 0: no limit
    _open: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def one_of(self, tenant: str) -> Iterator[None]:
        """Count one more stream while the block runs; raises `Overloaded` at the tenant's limit."""
        count = self._open.get(tenant, 0)
        if self.most and count >= self.most:
            whose = f"Tenant {tenant!r}" if tenant else "The tenant without a name"
            raise Overloaded(
                f"{whose} has {count} answers under way, as many as it may have at once "
                "(access.max_streams_per_tenant): wait until one has ended.",
                retry_after_s=1.0,
            )
        self._open[tenant] = count + 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]


def check_capacity(request: Request, state: ClusterState) -> None:
    """Raise `NoWorkers` or `PromptTooLong` when no worker could ever serve the request."""
    if not state.pool(RoleName.DECODE, RoleName.MIXED):
        raise NoWorkers("No decode worker is registered; start one, or wait until it has loaded the model.")
    capacity = max(view.info.capacity_tokens for view in state.pool(RoleName.DECODE, RoleName.MIXED))
    prefill = state.pool(RoleName.PREFILL)
    if prefill and not state.pool(RoleName.MIXED):
        capacity = min(capacity, max(view.info.capacity_tokens for view in prefill))
    if request.max_total_tokens > capacity:
        raise PromptTooLong(
            f"Prompt and max_tokens come to {request.max_total_tokens} tokens; a worker's pages hold "
            f"{capacity}. Ask for fewer tokens or give the workers more pages."
        )
