"""`Admin`: the operators' client of a running cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from baton.client.connection import Connection, Credentials
from baton.client.errors import error_from_rpc
from baton.protocol.v1 import admin_pb2, admin_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50052"
TIMEOUT_S = 30.0


class Admin:
    """A synchronous client of the administration port.

        with baton.Admin() as admin:
            operation = admin.rebalance(3, 1)
            for operation in admin.watch(operation.operation_id):
                print(operation.state, [step.state for step in operation.steps])

    Starting an operation is idempotent: a second start with the same `operation_id` returns the first operation. A call
    that fails raises an error of `baton`, such as `baton.NotFound`, `InvalidRequest` or `Conflict`.
    """

    def __init__(
        self, address: str | None = None, timeout_s: float = TIMEOUT_S, **credentials: Unpack[Credentials]
    ) -> None:
        """Connect to "host:port"; the default is $BATON_ADMIN_ADDRESS, or port 50052 of this machine.

        `token`, `tls_ca`, `tls_certificate` and `tls_key` are described at `baton.client.connection.Connection`; their
        defaults are $BATON_TOKEN, $BATON_TLS_CA and so on. Raises `ConfigError` for credentials that cannot be used.
        """
        self.address = address or os.environ.get("BATON_ADMIN_ADDRESS") or DEFAULT_ADDRESS
        self._timeout_s = timeout_s
        connection = Connection(**credentials)
        self._channel, self._metadata = connection.channel(self.address), connection.metadata
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

    def cluster(self) -> admin_pb2.Cluster:
        """Pools, workers, and their current and predicted load."""
        return self._call(self._stub.GetCluster, admin_pb2.GetClusterRequest())  # type: ignore[no-any-return]

    def explain(self, request_id: str) -> admin_pb2.Explanation:
        """The routing decisions of a request. Raises `NotFound` for a request the router has no record of."""
        request = admin_pb2.ExplainRequestRequest(request_id=request_id)
        return self._call(self._stub.ExplainRequest, request)  # type: ignore[no-any-return]

    def rebalance(
        self, prefill: int, decode: int, *, operation_id: str = "", dry_run: bool = False
    ) -> admin_pb2.Operation:
        """Move workers until the pools have these sizes. A dry run returns the steps without taking them."""
        kind = {"rebalance": admin_pb2.Rebalance(prefill=prefill, decode=decode)}
        return self._start(kind, operation_id, dry_run)

    def drain(self, *workers: str, operation_id: str = "", dry_run: bool = False) -> admin_pb2.Operation:
        """Send these workers no new requests, and migrate their requests to other workers."""
        return self._start({"drain": admin_pb2.Drain(workers=workers)}, operation_id, dry_run)

    def undrain(self, *workers: str, operation_id: str = "", dry_run: bool = False) -> admin_pb2.Operation:
        """Return drained workers to their pools."""
        return self._start({"undrain": admin_pb2.Undrain(workers=workers)}, operation_id, dry_run)

    def migrate(
        self, request_id: str, worker: str = "", *, operation_id: str = "", dry_run: bool = False
    ) -> admin_pb2.Operation:
        """Migrate a decoding request to another worker; the router chooses one if none is named."""
        kind = {"migrate": admin_pb2.Migrate(request_id=request_id, worker=worker)}
        return self._start(kind, operation_id, dry_run)

    def watch(self, operation_id: str) -> Iterator[admin_pb2.Operation]:
        """The operation's state now and after each change, until it has ended.

        A router answers at once with the current state. The call is therefore repeated every `timeout_s`, and a call
        without any answer raises `DeadlineExceeded`.
        """
        request = admin_pb2.WatchOperationRequest(operation_id=operation_id)
        while True:
            call, answered = self._stub.WatchOperation(request, timeout=self._timeout_s, metadata=self._metadata), False
            try:
                for operation in call:
                    answered = True
                    yield operation
                return
            except grpc.RpcError as error:
                if not (answered and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED):  # type: ignore[attr-defined]
                    raise error_from_rpc(error, self.address, self._timeout_s) from None
            finally:
                call.cancel()

    def cancel(self, operation_id: str) -> admin_pb2.Operation:
        """Cancel the operation's remaining steps. Completed steps are not rolled back."""
        request = admin_pb2.CancelOperationRequest(operation_id=operation_id)
        return self._call(self._stub.CancelOperation, request)  # type: ignore[no-any-return]

    def operations(self) -> list[admin_pb2.Operation]:
        """Recent operations, the newest first."""
        return list(self._call(self._stub.ListOperations, admin_pb2.ListOperationsRequest()).operations)

    def policy(self, name: str | None = None) -> admin_pb2.Policy:
        """The placement policy in use and the available ones. Given a name, switch to that policy first."""
        return self._call(self._stub.SetPolicy, admin_pb2.SetPolicyRequest(name=name or ""))  # type: ignore[no-any-return]

    def auto(self, on: bool) -> admin_pb2.Planner:
        """Turn the pool planner's automatic moves on or off."""
        return self._call(self._stub.SetAuto, admin_pb2.SetAutoRequest(on=on))  # type: ignore[no-any-return]

    def check_pages(self, seconds: float = 3.0) -> admin_pb2.PageCheck:
        """Compare the pages in use on workers with those of live requests, over `seconds` of load reports."""
        request = admin_pb2.CheckPagesRequest(seconds=seconds)
        return self._call(self._stub.CheckPages, request, self._timeout_s + seconds)  # type: ignore[no-any-return]

    def links(self) -> list[admin_pb2.Link]:
        """The measured transfer rate of each pair of workers."""
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
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
