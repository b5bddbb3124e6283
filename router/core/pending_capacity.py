"""Pending capacity: requests wait a grace period for a decode worker to register. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from baton.protocol.errors import NoWorkers, PromptTooLong
from baton.protocol.request import Request
from baton.protocol.worker import RoleName
from baton.router.core.arrivals import name_pages
from baton.router.core.dispatch import Dispatch
from baton.router.core.events import Stopped
from baton.router.core.limits import check_capacity
from baton.router.core.live_request import LiveRequest
from baton.router.policy.cluster_state import ClusterState


@dataclass(eq=False)
class PendingCapacity:
    """`grace_s` counts from when the last decode worker was lost, or the router started."""

    state: ClusterState
    dispatch: Dispatch
    grace_s: float
    empty_since_s: float | None  # None while there is a decode worker
    _waiting: dict[str, None] = field(default_factory=dict)  # request ids

    def check(self, request: Request, now: float) -> None:
        """Check a new request; raises `NoWorkers` or `PromptTooLong` when it cannot be served."""
        self._look(now)
        if self._patient(now):
            self._waiting[request.request_id] = None
        else:
            check_capacity(request, self.state)

    def answer(self, records: Mapping[str, LiveRequest], now: float) -> list[tuple[str, Stopped]]:
        """Release waiting requests if there is a decode worker now; returns the end of those whose grace is over."""
        self._look(now)
        if not self._waiting or self._patient(now):
            return []
        refused: list[tuple[str, Stopped]] = []
        for request_id in self._waiting:
            record = records.get(request_id)
            if record is None or record.closed:
                continue
            try:
                check_capacity(record.request, self.state)
                self._place(record)
            except (NoWorkers, PromptTooLong) as error:
                refused.append((request_id, Stopped(None, error)))
        self._waiting.clear()
        return refused

    def _place(self, record: LiveRequest) -> None:
        if self.dispatch.queues(record.request_id):
            record.page_keys = name_pages(record.request, self.state)
            self.dispatch.wait(record.placement_input)

    def _look(self, now: float) -> None:
        if self.state.pool(RoleName.DECODE, RoleName.MIXED):
            self.empty_since_s = None
        elif self.empty_since_s is None:
            self.empty_since_s = now

    def _patient(self, now: float) -> bool:
        return self.empty_since_s is not None and now - self.empty_since_s < self.grace_s
