"""`Admin`: what operators ask of a running cluster, and have it do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from baton.client.connection import Connection
from baton.client.errors import error_from_rpc
from baton.protocol.v1 import admin_pb2, admin_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50052"
TIMEOUT_S = 30.0


class Admin:
    """A synchronous client of the administration.

        with baton.Admin() as admin:
            operation = admin.rebalance(3, 1)
            for operation in admin.watch(operation.operation_id):
                print(operation.state, [step.state for step in operation.steps])

    An operation is named by its id: asked for twice with the same one, it is done once. Failed calls raise an error of
    `baton`, such as `baton.NotFound`, `InvalidRequest` or `Conflict`.
    """

    def __init__(
        self,
        address: str | None = None,
        timeout_s: float = TIMEOUT_S,
        *,
        token: str | None = None,
        tls_ca: str | None = None,
        tls_certificate: str | None = None,
        tls_key: str | None = None,
    ) -> None:
        """Connect to "host:port"; the default is $BATON_ADMIN_ADDRESS, or this machine's port 50052.

        The rest as in `baton.client.connection.Connection`, with $BATON_TOKEN, $BATON_TLS_CA and so on as defaults.
        """
        self.address = address or os.environ.get("BATON_ADMIN_ADDRESS") or DEFAULT_ADDRESS
        self._timeout_s = timeout_s
        connection = Connection(token, tls_ca, tls_certificate, tls_key)
        self._channel, self._metadata = connection.channel(self.address), connection.metadata
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

    def cluster(self) -> admin_pb2.Cluster:
        """Pools, workers and their load, now and as predicted."""
        return self._call(self._stub.GetCluster, admin_pb2.GetClusterRequest())  # type: ignore[no-any-return]

    def explain(self, request_id: str) -> admin_pb2.Explanation:
        """Why a request went where it went. Raises `NotFound` when the router does not remember it."""
        request = admin_pb2.ExplainRequestRequest(request_id=request_id)
        return self._call(self._stub.ExplainRequest, request)  # type: ignore[no-any-return]

    def rebalance(
        self, prefill: int, decode: int, *, operation_id: str = "", dry_run: bool = False
    ) -> admin_pb2.Operation:
        """Have so many workers in each of the two pools. A dry run only says what would be done."""
        kind = {"rebalance": admin_pb2.Rebalance(prefill=prefill, decode=decode)}
        return self._start(kind, operation_id, dry_run)

    def drain(self, *workers: str, operation_id: str = "", dry_run: bool = False) -> admin_pb2.Operation:
        """Give these workers nothing new, and move what they hold to others."""
        return self._start({"drain": admin_pb2.Drain(workers=workers)}, operation_id, dry_run)

    def undrain(self, *workers: str, operation_id: str = "", dry_run: bool = False) -> admin_pb2.Operation:
        """Let these workers serve again."""
        return self._start({"undrain": admin_pb2.Undrain(workers=workers)}, operation_id, dry_run)

    def migrate(
        self, request_id: str, worker: str = "", *, operation_id: str = "", dry_run: bool = False
    ) -> admin_pb2.Operation:
        """Move a request that decodes to another worker; without a name the router chooses one."""
        kind = {"migrate": admin_pb2.Migrate(request_id=request_id, worker=worker)}
        return self._start(kind, operation_id, dry_run)

    def watch(self, operation_id: str) -> Iterator[admin_pb2.Operation]:
        """The operation now, and again whenever it has moved, until it has ended.

        A router says at once how the operation stands; so the call is made again every `timeout_s`, and one in which
        nothing comes is the end.
        """
        request = admin_pb2.WatchOperationRequest(operation_id=operation_id)
        while True:
            call, told = self._stub.WatchOperation(request, timeout=self._timeout_s, metadata=self._metadata), False
            try:
                for operation in call:
                    told = True
                    yield operation
                return
            except grpc.RpcError as error:
                if not (told and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED):  # type: ignore[attr-defined]
                    raise error_from_rpc(error, self.address, self._timeout_s) from None
            finally:
                call.cancel()

    def cancel(self, operation_id: str) -> admin_pb2.Operation:
        """Cancel the operation's remaining steps. Completed steps are not rolled back."""
        request = admin_pb2.CancelOperationRequest(operation_id=operation_id)
        return self._call(self._stub.CancelOperation, request)  # type: ignore[no-any-return]

    def operations(self) -> list[admin_pb2.Operation]:
        """The newest operations, the newest first."""
        return list(self._call(self._stub.ListOperations, admin_pb2.ListOperationsRequest()).operations)

    def policy(self, name: str | None = None) -> admin_pb2.Policy:
        """Which placement policy decides, and which are known; another one decides from now on when a name is given."""
        return self._call(self._stub.SetPolicy, admin_pb2.SetPolicyRequest(name=name or ""))  # type: ignore[no-any-return]

    def auto(self, on: bool) -> admin_pb2.Planner:
        """Whether the pool planner moves workers by itself."""
        return self._call(self._stub.SetAuto, admin_pb2.SetAutoRequest(on=on))  # type: ignore[no-any-return]

    def check_pages(self, seconds: float = 3.0) -> admin_pb2.PageCheck:
        """Compare for so long what the workers hold with what the live requests account for."""
        request = admin_pb2.CheckPagesRequest(seconds=seconds)
        return self._call(self._stub.CheckPages, request, self._timeout_s + seconds)  # type: ignore[no-any-return]

    def links(self) -> list[admin_pb2.Link]:
        """How fast pages go from worker to worker, as far as that was measured."""
        return list(self._call(self._stub.ListLinks, admin_pb2.ListLinksRequest()).links)

    def _start(self, kind: dict[str, Any], operation_id: str, dry_run: bool) -> admin_pb2.Operation:
        request = admin_pb2.StartOperationRequest(operation_id=operation_id, dry_run=dry_run, **kind)
        return self._call(self._stub.StartOperation, request)  # type: ignore[no-any-return]

    def _call(self, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        timeout_s = timeout_s or self._timeout_s
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address, timeout_s) from None

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
