"""The gRPC server for operators, on its own address, because its callers control the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc
from grpc_health.v1 import health

from baton.access.access import ADMIN
from baton.access.credentials import Credentials
from baton.access.grpc_server import serve, set_serving
from baton.access.status_mapping import abort
from baton.protocol.errors import BatonError, InvalidRequest
from baton.protocol.v1 import admin_pb2, admin_pb2_grpc
from baton.router.admin_calls import AdminCalls
from baton.router.admin_messages import operation_message, page_check_message
from baton.router.core.page_audit import PageAudit, judge

SERVICE = "baton.v1.Admin"
INFERENCE = "baton.v1.Inference"  # Its health check: workers of all roles serve
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
    """The operators' calls over gRPC (proto/baton/v1/admin.proto)."""

    calls: AdminCalls

    async def GetCluster(
        self, request: admin_pb2.GetClusterRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Cluster:
        return self.calls.cluster()

    async def ExplainRequest(
        self, request: admin_pb2.ExplainRequestRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Explanation:
        async with _abort_on_error(context):
            return self.calls.explain(request.request_id)

    async def StartOperation(
        self, request: admin_pb2.StartOperationRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Operation:
        async with _abort_on_error(context):
            return self.calls.start_operation(request)

    async def WatchOperation(
        self, request: admin_pb2.WatchOperationRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[admin_pb2.Operation]:
        driver = self.calls.driver
        async with _abort_on_error(context), aclosing(driver.watch(request.operation_id)) as states:
            async for operation in states:
                yield operation_message(operation, driver.clock())

    async def CancelOperation(
        self, request: admin_pb2.CancelOperationRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Operation:
        async with _abort_on_error(context):
            return self.calls.cancel_operation(request.operation_id)

    async def ListOperations(
        self, request: admin_pb2.ListOperationsRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Operations:
        return self.calls.operations()

    async def SetPolicy(
        self, request: admin_pb2.SetPolicyRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Policy:
        async with _abort_on_error(context):
            return self.calls.policy(request.name)

    async def SetAuto(self, request: admin_pb2.SetAutoRequest, context: grpc.aio.ServicerContext) -> admin_pb2.Planner:
        return self.calls.set_auto(request.on)

    async def CheckPages(
        self, request: admin_pb2.CheckPagesRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.PageCheck:
        async with _abort_on_error(context):
            seconds = request.seconds or CHECK_S
            if not CHECK_MIN_S <= seconds <= CHECK_MAX_S:
                raise InvalidRequest(f"A check takes {CHECK_MIN_S:g} to {CHECK_MAX_S:g} seconds, not {seconds:g}.")
            core = self.calls.driver.core
            audit = PageAudit(core.state, core.operations.records, core.membership.transfers, core.adoption.orphans)
            readings = [audit.look()]
            for _ in range(round(seconds / LOOK_EVERY_S)):
                await asyncio.sleep(LOOK_EVERY_S)
                readings.append(audit.look())
        return page_check_message(judge(readings))

    async def ListLinks(
        self, request: admin_pb2.ListLinksRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Links:
        return self.calls.links()


async def start_admin_server(
    admin: AdminService, address: str, credentials: Credentials, health_service: health.aio.HealthServicer
) -> tuple[grpc.aio.Server, int]:
    """Serve administration on `address` ("host:port", port 0 for any); returns the server and its port.

    Health checks of "" and of the service succeed from now on, those of `INFERENCE` once workers of all roles serve.
    """
    add = partial(admin_pb2_grpc.add_AdminServicer_to_server, admin)
    await set_serving(health_service, (INFERENCE,), False)
    started = await serve(address, SERVICE, ADMIN, credentials, add, health_service)
    await set_serving(health_service, ("", SERVICE), True)
    return started
