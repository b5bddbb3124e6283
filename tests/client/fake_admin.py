"""An admin server without a cluster: it gives configured answers and records the calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from baton.protocol.v1 import admin_pb2, admin_pb2_grpc

WORKERS = {"prefill": ("prefill-0", "prefill-1"), "decode": ("decode-0",)}


def operation(state: str, *steps: str, message: str = "") -> admin_pb2.Operation:
    """Operation "op" with one step on prefill-1 for each of these states."""
    made = admin_pb2.Operation(operation_id="op", title="rebalance", state=state, message=message, elapsed_s=1.5)
    for step in steps:
        made.steps.add(worker="prefill-1", action="switch to decode", state=step, elapsed_s=1.0)
    return made


@dataclass
class FakeAdmin(admin_pb2_grpc.AdminServicer):
    """`states` are the updates of a watch; with `held` the watch continues only after a cancel."""

    states: list[admin_pb2.Operation] = field(default_factory=lambda: [operation("done", "done")])
    plan: admin_pb2.Operation = field(default_factory=lambda: operation("planned", "waiting"))
    held: bool = False
    check: admin_pb2.PageCheck = field(default_factory=admin_pb2.PageCheck)
    links: list[admin_pb2.Link] = field(default_factory=list)
    started: list[admin_pb2.StartOperationRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    refusal: tuple[str, str] | None = None  # (name of the error, message)
    _cancel: threading.Event = field(default_factory=threading.Event)

    def GetCluster(self, request: object, context: grpc.ServicerContext) -> admin_pb2.Cluster:  # noqa: N802
        cluster = admin_pb2.Cluster(model="fake", settings={"policy": "least_loaded"})
        for role, names in WORKERS.items():
            workers = [
                admin_pb2.WorkerStatus(name=name, state="serving", pages_total=100, pages_in_use=25, pages_cached=50)
                for name in names
            ]
            cluster.pools.add(role=role, workers=workers)
        cluster.planner.prefill, cluster.planner.decode, cluster.planner.why = 1, 2, "decode is full"
        return cluster

    def StartOperation(  # noqa: N802
        self, request: admin_pb2.StartOperationRequest, context: grpc.ServicerContext
    ) -> admin_pb2.Operation:
        self.started.append(request)
        if self.refusal is not None:
            name, sentence = self.refusal
            context.set_trailing_metadata((("baton-error", name),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, sentence)
        return self.plan if request.dry_run else operation("running", "waiting")

    def WatchOperation(  # noqa: N802
        self, request: admin_pb2.WatchOperationRequest, context: grpc.ServicerContext
    ) -> Iterator[admin_pb2.Operation]:
        yield from self.states
        if self.held:
            self._cancel.wait()
            yield operation("cancelled", "cancelled")

    def CancelOperation(  # noqa: N802
        self, request: admin_pb2.CancelOperationRequest, context: grpc.ServicerContext
    ) -> admin_pb2.Operation:
        self.cancelled.append(request.operation_id)
        self._cancel.set()
        return operation("cancelled", "cancelled")

    def ListOperations(self, request: object, context: grpc.ServicerContext) -> admin_pb2.Operations:  # noqa: N802
        return admin_pb2.Operations(operations=[operation("running", "waiting"), operation("done", "done", "done")])

    def SetPolicy(self, request: admin_pb2.SetPolicyRequest, context: grpc.ServicerContext) -> admin_pb2.Policy:  # noqa: N802
        return admin_pb2.Policy(name=request.name or "least_loaded", known=["least_loaded", "round_robin"])

    def SetAuto(self, request: admin_pb2.SetAutoRequest, context: grpc.ServicerContext) -> admin_pb2.Planner:  # noqa: N802
        return admin_pb2.Planner(auto=request.on)

    def CheckPages(self, request: object, context: grpc.ServicerContext) -> admin_pb2.PageCheck:  # noqa: N802
        return self.check

    def ListLinks(self, request: object, context: grpc.ServicerContext) -> admin_pb2.Links:  # noqa: N802
        return admin_pb2.Links(links=self.links)

    def release(self) -> None:
        """Let held watches continue."""
        self._cancel.set()


@contextmanager
def serving(admin: FakeAdmin) -> Iterator[str]:
    """Start the server; yields its address."""
    server = grpc.server(futures.ThreadPoolExecutor(16))
    admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        admin.release()
        server.stop(0).wait()
