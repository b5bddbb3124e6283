"""Errors of the client library: the cluster's own tree, found again from a failed call."""

from __future__ import annotations

import grpc

from cluster.errors import (
    ERRORS_BY_NAME,
    BatonError,
    Cancelled,
    ConfigError,
    Conflict,
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
    told = {key: str(value) for key, value in error.trailing_metadata() or ()}  # type: ignore[attr-defined]
    kind = ERRORS_BY_NAME.get(told.get("baton-error", ""))
    if status == "RESOURCE_EXHAUSTED":
        return Overloaded(details or status, _retry_after_s(told))
    if kind is not None:
        return kind(details or status)
    if status == "UNAVAILABLE" and ("connect" in details.lower() or not details):
        return NoWorkers(f"No Baton answers at {address}: start one with `baton up`, or give another address.")
    if status == "UNIMPLEMENTED":
        return ConfigError(
            f"{address} does not answer this call: requests and administration have ports of their own "
            "(50051 and 50052 by default)."
        )
    return _BY_STATUS.get(status, BatonError)(details or status)


def _retry_after_s(told: dict[str, str]) -> float | None:
    """When the router says there may be room again."""
    after_ms = told.get("retry-after-ms", "")
    return int(after_ms) / 1000 if after_ms.isdigit() else None


__all__ = [
    "BatonError",
    "Cancelled",
    "ConfigError",
    "Conflict",
    "DeadlineExceeded",
    "InternalError",
    "InvalidRequest",
    "NoWorkers",
    "NotFound",
    "Overloaded",
    "error_from_rpc",
]
