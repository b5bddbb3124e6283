"""Requests as they enter the router: refused, queued, or waiting for the first workers. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from baton.protocol.errors import BatonError, InvalidRequest, NoWorkers, Overloaded, PromptTooLong
from baton.protocol.gateway_messages import Submit
from baton.protocol.latency import Latency
from baton.protocol.worker import RoleName
from baton.router.core.live_request import LiveRequest
from baton.router.core.operation import PROBE
from baton.router.core.timeline import opened
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.output_length import OutputLength, chain_nodes


@dataclass(eq=False)
class Intake:
    """Without a decode worker requests wait `grace_s` from when the last was lost, or the router started."""

    state: ClusterState
    output_length: OutputLength
    max_streams_per_tenant: int  # 0: no limit
    grace_s: float
    empty_since_s: float | None  # None while there is a decode worker
    _streams: Counter[str] = field(default_factory=Counter)  # that have not ended, by tenant
    _waiting: dict[str, None] = field(default_factory=dict)  # request ids

    def check(self, submit: Submit, now: float) -> None:
        """Raise the `BatonError` with which a new request is refused."""
        if submit.request_id.startswith(PROBE):
            raise InvalidRequest(f"Request ids that begin with {PROBE!r} are the router's own; choose another.")
        count = self._streams[submit.tenant]
        if self.max_streams_per_tenant and count >= self.max_streams_per_tenant:
            whose = f"Tenant {submit.tenant!r}" if submit.tenant else "The tenant without a name"
            raise Overloaded(
                f"{whose} has {count} answers under way, as many as it may have at once "
                "(access.max_streams_per_tenant): wait until one has ended.",
                retry_after_s=1.0,
                cause="tenant_streams",
            )
        self._look(now)
        if not self._patient(now):
            self._check_capacity(submit)

    def open(self, submit: Submit, gateway: str, incarnation: str, now: float) -> LiveRequest:
        """A request as it enters the router, its output predicted."""
        view = next(iter(self.state.workers.values()), None)
        nodes = chain_nodes(submit.page_keys, view.info.page_size) if view is not None and submit.page_keys else ()
        prediction = self.output_length.predict(nodes, submit.tenant, submit.num_prompt_tokens, submit.max_tokens)
        deadline_s = None if submit.deadline_in_s is None else now + submit.deadline_in_s
        latency = Latency(now - submit.age_s)
        if gateway:
            self._streams[submit.tenant] += 1
            if self._patient(now):
                self._waiting[submit.request_id] = None
        return LiveRequest(
            *(submit, gateway, incarnation, latency, deadline_s, prediction),
            resumed_from=submit.num_emitted,
            called_at_s=submit.called_at_s,
            submission=submit.submission,
            timeline=opened(submit.trace, now),
        )

    def ended(self, live: LiveRequest) -> None:
        """Its stream has ended."""
        if live.gateway:
            self._streams[live.tenant] -= 1
            if not self._streams[live.tenant]:
                del self._streams[live.tenant]

    def answer(self, live: Mapping[str, LiveRequest], now: float) -> list[tuple[str, BatonError]]:
        """The requests that no worker can serve, and why, once there is a decode worker or their grace is over."""
        self._look(now)
        if not self._waiting or self._patient(now):
            return []
        refused: list[tuple[str, BatonError]] = []
        for request_id in self._waiting:
            request = live.get(request_id)
            if request is None or request.closed:
                continue
            try:
                self._check_capacity(request.submit)
            except BatonError as error:
                refused.append((request_id, error))
        self._waiting.clear()
        return refused

    def _check_capacity(self, submit: Submit) -> None:
        """Raise `NoWorkers` or `PromptTooLong` when no worker could ever serve the request."""
        capacity = self.state.capacity_tokens(RoleName.DECODE, RoleName.MIXED)
        if capacity is None:
            raise NoWorkers("No decode worker is registered; start one, or wait until it has loaded the model.")
        prefill = self.state.capacity_tokens(RoleName.PREFILL)
        if prefill is not None and not self.state.pool(RoleName.MIXED):
            capacity = min(capacity, prefill)
        tokens = submit.num_prompt_tokens + submit.max_tokens
        if tokens > capacity:
            raise PromptTooLong(
                f"Prompt and max_tokens come to {tokens} tokens; a worker's pages hold {capacity}. "
                "Ask for fewer tokens or give the workers more pages."
            )

    def _look(self, now: float) -> None:
        if self.state.pool(RoleName.DECODE, RoleName.MIXED):
            self.empty_since_s = None
        elif self.empty_since_s is None:
            self.empty_since_s = now

    def _patient(self, now: float) -> bool:
        return self.empty_since_s is not None and now - self.empty_since_s < self.grace_s
