"""The gRPC server for operators, on its own address, because its callers control the cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import grpc

from baton.access.access import ADMIN
from baton.access.credentials import Credentials
from baton.access.grpc_server import serve
from baton.access.status_mapping import abort
from baton.protocol.errors import BatonError, InvalidRequest, NotFound
from baton.protocol.v1 import admin_pb2, admin_pb2_grpc
from baton.protocol.worker import RoleName
from baton.router.admin_messages import (
    explanation_message,
    gateway_message,
    links_message,
    operation_message,
    page_check_message,
    planner_message,
    read_spec,
    worker_message,
)
from baton.router.core.explanation import MAX_EXPLANATIONS
from baton.router.core.page_audit import PageAudit, judge
from baton.router.driver import Driver
from baton.router.policy.policies import NAMES

SERVICE = "baton.v1.Admin"
CHECK_S, CHECK_MIN_S, CHECK_MAX_S = 3.0, 1.0, 60.0  # Duration of a check of pages: default, minimum, maximum
LOOK_EVERY_S = 0.1


@asynccontextmanager
async def _abort_on_error(context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
    """End the call with the status and message of an error raised inside."""
    try:
        yield
    except BatonError as error:
        await abort(context, error)


@dataclass(eq=False)
class AdminService(admin_pb2_grpc.AdminServicer):
    """The operators' calls (proto/baton/v1/admin.proto). The core decides; this class translates messages."""

    driver: Driver
    model_name: str
    settings: dict[str, str]
    started_s: float = field(default_factory=time.monotonic)

    async def GetCluster(
        self, request: admin_pb2.GetClusterRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Cluster:
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
        )
        for name, gateway in sorted(core.gateways.by_name.items()):
            cluster.gateways.append(gateway_message(gateway, self.driver.gateway_rates.rates(name), now))
        for role in RoleName:
            views = [view for _, view in sorted(core.state.workers.items()) if view.role is role]
            workers = [worker_message(view, now) for view in views]
            if workers:
                cluster.pools.add(role=role.value, workers=workers)
        return cluster

    async def ExplainRequest(
        self, request: admin_pb2.ExplainRequestRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Explanation:
        async with _abort_on_error(context):
            found = self.driver.core.explanations.get(request.request_id)
            if found is None:
                raise NotFound(
                    f"The router has no record of request {request.request_id!r}: it keeps the newest "
                    f"{MAX_EXPLANATIONS} since it started."
                )
        return explanation_message(request.request_id, found)

    async def StartOperation(
        self, request: admin_pb2.StartOperationRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Operation:
        async with _abort_on_error(context):
            operation = self.driver.start_operation(request.operation_id, read_spec(request), request.dry_run)
        return operation_message(operation, self.driver.clock())

    async def WatchOperation(
        self, request: admin_pb2.WatchOperationRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[admin_pb2.Operation]:
        async with _abort_on_error(context), aclosing(self.driver.watch(request.operation_id)) as states:
            async for operation in states:
                yield operation_message(operation, self.driver.clock())

    async def CancelOperation(
        self, request: admin_pb2.CancelOperationRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Operation:
        async with _abort_on_error(context):
            operation = self.driver.cancel_operation(request.operation_id)
        return operation_message(operation, self.driver.clock())

    async def ListOperations(
        self, request: admin_pb2.ListOperationsRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Operations:
        now = self.driver.clock()
        newest = self.driver.core.operations.newest()
        return admin_pb2.Operations(operations=[operation_message(one, now) for one in newest])

    async def SetPolicy(
        self, request: admin_pb2.SetPolicyRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Policy:
        async with _abort_on_error(context):
            if request.name:
                self.driver.set_policy(request.name)
        return admin_pb2.Policy(name=self.driver.core.dispatch.placement.name, known=NAMES)

    async def SetAuto(self, request: admin_pb2.SetAutoRequest, context: grpc.aio.ServicerContext) -> admin_pb2.Planner:
        self.driver.core.automation.auto = request.on
        return planner_message(self.driver.core, self.driver.clock())

    async def CheckPages(
        self, request: admin_pb2.CheckPagesRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.PageCheck:
        async with _abort_on_error(context):
            seconds = request.seconds or CHECK_S
            if not CHECK_MIN_S <= seconds <= CHECK_MAX_S:
                raise InvalidRequest(f"A check takes {CHECK_MIN_S:g} to {CHECK_MAX_S:g} seconds, not {seconds:g}.")
            core = self.driver.core
            audit = PageAudit(core.state, core.operations.records, core.membership.transfers, core.adoption.orphans)
            readings = [audit.look()]
            for _ in range(round(seconds / LOOK_EVERY_S)):
                await asyncio.sleep(LOOK_EVERY_S)
                readings.append(audit.look())
        return page_check_message(judge(readings))

    async def ListLinks(
        self, request: admin_pb2.ListLinksRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Links:
        return links_message(self.driver.core.membership.rates.rates())


async def start_admin_server(
    admin: AdminService, address: str, credentials: Credentials
) -> tuple[grpc.aio.Server, int]:
    """Serve administration on `address` ("host:port", port 0 for any); returns the server and its port."""
    add = partial(admin_pb2_grpc.add_AdminServicer_to_server, admin)
    return await serve(address, SERVICE, ADMIN, credentials, add)
