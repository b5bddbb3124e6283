"""The router's limits and timeouts."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from baton.config.schema import AccessSection
from baton.protocol.errors import InvalidRequest, NoWorkers, Overloaded, PromptTooLong
from baton.protocol.request import Request
from baton.protocol.worker import RoleName
from baton.router.core.operation import PROBE
from baton.router.policy.cluster_state import ClusterState


def check_id(request_id: str, live: Container[str]) -> None:
    """Raise `InvalidRequest` unless a new request may have this id."""
    if request_id.startswith(PROBE):
        raise InvalidRequest(f"Request ids that begin with {PROBE!r} are the router's own; choose another.")
    if request_id in live:
        raise InvalidRequest(f"Request id {request_id!r} is in use by a live request; choose another.")


def most_prompt_tokens(access: AccessSection, context_tokens: int) -> int:
    """The longest prompt that could be accepted."""
    return context_tokens if access.max_prompt_tokens == "auto" else min(access.max_prompt_tokens, context_tokens)


def check_prompt(access: AccessSection, num_tokens: int) -> None:
    """Raise `PromptTooLong` for a prompt that is longer than the configuration allows."""
    if access.max_prompt_tokens != "auto" and num_tokens > access.max_prompt_tokens:
        raise PromptTooLong(
            f"The prompt has {num_tokens} tokens; this cluster accepts {access.max_prompt_tokens} "
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
    capacity = state.capacity_tokens(RoleName.DECODE, RoleName.MIXED)
    if capacity is None:
        raise NoWorkers("No decode worker is registered; start one, or wait until it has loaded the model.")
    prefill = state.capacity_tokens(RoleName.PREFILL)
    if prefill is not None and not state.pool(RoleName.MIXED):
        capacity = min(capacity, prefill)
    if request.max_total_tokens > capacity:
        raise PromptTooLong(
            f"Prompt and max_tokens come to {request.max_total_tokens} tokens; a worker's pages hold "
            f"{capacity}. Ask for fewer tokens or give the workers more pages."
        )
