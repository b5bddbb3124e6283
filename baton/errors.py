"""Errors of the client library: the cluster's own tree, found again from a gRPC status."""

from __future__ import annotations

import grpc

from cluster.errors import (
    BatonError,
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    NoWorkers,
    Overloaded,
)

_BY_STATUS: dict[str, type[BatonError]] = {
    kind.grpc_status: kind
    for kind in (InvalidRequest, ConfigError, NotFound, NoWorkers, DeadlineExceeded, Cancelled, InternalError)
}


def error_from_rpc(error: grpc.RpcError, address: str) -> BatonError:
    """The error a failed call stands for, with the server's own sentence."""
    status, details = error.code().name, error.details() or ""  # type: ignore[attr-defined]
    if status == "UNAVAILABLE" and ("connect" in details.lower() or not details):
        return NoWorkers(f"No Baton answers at {address}: start one with `baton up`, or give another address.")
    if status == "RESOURCE_EXHAUSTED":
        return Overloaded(details or status, _retry_after_s(error))
    return _BY_STATUS.get(status, BatonError)(details or status)


def _retry_after_s(error: grpc.RpcError) -> float | None:
    """When the router says there may be room again."""
    for key, value in error.trailing_metadata() or ():  # type: ignore[attr-defined]
        if key == "retry-after-ms" and str(value).isdigit():
            return int(value) / 1000
    return None


__all__ = [
    "BatonError",
    "Cancelled",
    "ConfigError",
    "DeadlineExceeded",
    "InternalError",
    "InvalidRequest",
    "NoWorkers",
    "NotFound",
    "Overloaded",
    "error_from_rpc",
]
