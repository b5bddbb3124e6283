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
    NoWorkers,
    Overloaded,
)

_BY_STATUS: dict[str, type[BatonError]] = {
    kind.grpc_status: kind
    for kind in (InvalidRequest, ConfigError, Overloaded, NoWorkers, DeadlineExceeded, Cancelled, InternalError)
}


def error_from_rpc(error: grpc.RpcError, address: str) -> BatonError:
    """The error a failed call stands for, with the server's own sentence."""
    status, details = error.code().name, error.details() or ""  # type: ignore[attr-defined]
    if status == "UNAVAILABLE" and ("connect" in details.lower() or not details):
        return NoWorkers(f"No Baton answers at {address}: start one with `baton up`, or give another address.")
    return _BY_STATUS.get(status, BatonError)(details or status)


__all__ = [
    "BatonError",
    "Cancelled",
    "ConfigError",
    "DeadlineExceeded",
    "InternalError",
    "InvalidRequest",
    "NoWorkers",
    "Overloaded",
    "error_from_rpc",
]
