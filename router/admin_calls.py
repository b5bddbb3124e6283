"""The operators' calls, whatever they come over: gRPC (admin_server.py) or HTTP (admin_http.py).

Each returns a message of proto/baton/v1/admin.proto, or raises a `BatonError`. The core decides; this class translates.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from baton.protocol.errors import NotFound
from baton.protocol.v1 import admin_pb2
from baton.protocol.worker import RoleName
from baton.router.admin_messages import (
    explanation_message,
    gateway_message,
    links_message,
    operation_message,
    planner_message,
    read_spec,
    totals_message,
    worker_message,
)
from baton.router.core.explanation import MAX_EXPLANATIONS
from baton.router.driver import Driver
from baton.router.policy.policies import NAMES


@dataclass(eq=False)
class AdminCalls:
    """Calls that answer at once."""

    driver: Driver
    model_name: str
    settings: dict[str, str]
    started_s: float = field(default_factory=time.monotonic)

    def summary(self) -> admin_pb2.Cluster:
        """The cluster without its workers."""
        core, now = self.driver.core, self.driver.clock()
        cluster = admin_pb2.Cluster(
            model=self.model_name,
            queued_requests=core.queued,
            live_requests=core.live,
            finished_requests=core.explanations.finished,
            failed_requests=core.explanations.failed,
            cancelled_requests=core.explanations.cancelled,
            refused_requests=core.requests.refused,
            continued_requests=core.adoption.continued,
            unclaimed_sequences=len(core.adoption.orphans),
            uptime_s=now - self.started_s,
            settings={**self.settings, "policy": core.dispatch.placement.name},
            planner=planner_message(core, now),
            totals=totals_message(core.explanations.totals),
        )
        for name, gateway in sorted(core.gateways.by_name.items()):
            cluster.gateways.append(gateway_message(gateway, self.driver.gateway_rates.rates(name), now))
        return cluster

    def cluster(self) -> admin_pb2.Cluster:
        """Pools, workers, and their current and predicted load."""
        cluster, core, now = self.summary(), self.driver.core, self.driver.clock()
        for role in RoleName:
            views = [view for _, view in sorted(core.state.workers.items()) if view.role is role]
            workers = [worker_message(view, now) for view in views]
            if workers:
                cluster.pools.add(role=role.value, workers=workers)
        return cluster

    def explain(self, request_id: str) -> admin_pb2.Explanation:
        """The routing decision of a request, and its outcome; raises `NotFound`."""
        core = self.driver.core
        found = core.explanations.get(request_id)
        if found is None:
            raise NotFound(
                f"The router has no record of request {request_id!r}: it keeps the newest "
                f"{MAX_EXPLANATIONS} since it started."
            )
        return explanation_message(request_id, found, core.requests.live.get(request_id), self.driver.clock())

    def start_operation(self, request: admin_pb2.StartOperationRequest) -> admin_pb2.Operation:
        """Start an operation on the pools, or plan it; raises the core's `BatonError` if it is refused."""
        operation = self.driver.start_operation(request.operation_id, read_spec(request), request.dry_run)
        return operation_message(operation, self.driver.clock())

    def cancel_operation(self, operation_id: str) -> admin_pb2.Operation:
        """Cancel an operation's remaining steps; raises `NotFound`."""
        return operation_message(self.driver.cancel_operation(operation_id), self.driver.clock())

    def operations(self) -> admin_pb2.Operations:
        """Recent operations, the newest first."""
        now, newest = self.driver.clock(), self.driver.core.operations.newest()
        return admin_pb2.Operations(operations=[operation_message(one, now) for one in newest])

    def policy(self, name: str = "") -> admin_pb2.Policy:
        """The placement policies, after a switch to the named one; raises `InvalidRequest` for an unknown name."""
        if name:
            self.driver.set_policy(name)
        return admin_pb2.Policy(name=self.driver.core.dispatch.placement.name, known=NAMES)

    def set_auto(self, on: bool) -> admin_pb2.Planner:
        """Turn the planner's automatic moves on or off."""
        self.driver.core.automation.auto = on
        return planner_message(self.driver.core, self.driver.clock())

    def links(self) -> admin_pb2.Links:
        """The measured transfer rate of each pair of workers."""
        return links_message(self.driver.core.membership.rates.rates())
