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
    PermissionDenied,
    Unauthenticated,
)

_BY_STATUS: dict[str, type[BatonError]] = {
    kind.grpc_status: kind
    for kind in (
        InvalidRequest,
        ConfigError,
        NotFound,
        NoWorkers,
        DeadlineExceeded,
        Cancelled,
        InternalError,
        Unauthenticated,
        PermissionDenied,
    )
}


def error_from_rpc(error: grpc.RpcError, address: str) -> BatonError:
    """The error a failed call stands for, with the server's own sentence."""
    status, details = error.code().name, error.details() or ""  # type: ignore[attr-defined]
    told = {key: str(value) for key, value in error.trailing_metadata() or ()}  # type: ignore[attr-defined]
    kind = ERRORS_BY_NAME.get(told.get("baton-error", ""))
    if status == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        return InvalidRequest(f"A message is too large ({details}): the router's limit is access.max_message_mib.")
    if status == "RESOURCE_EXHAUSTED":
        return Overloaded(details or status, _retry_after_s(told))
    if kind is not None:
        return kind(details or status)
    if status == "UNAVAILABLE" and (refusal := _tls_refusal(details, address)):
        return refusal
    if status == "UNAVAILABLE" and ("connect" in details.lower() or not details):
        return NoWorkers(f"No Baton answers at {address}: start one with `baton up`, or give another address.")
    if status == "UNIMPLEMENTED":
        return ConfigError(
            f"{address} does not answer this call: requests and administration have ports of their own "
            "(50051 and 50052 by default)."
        )
    return _BY_STATUS.get(status, BatonError)(details or status)


def _tls_refusal(details: str, address: str) -> BatonError | None:
    """What is the matter when two sides do not agree about TLS; gRPC tells only what OpenSSL said, or nothing."""
    if "WRONG_VERSION_NUMBER" in details:
        return ConfigError(f"{address} does not speak TLS: leave out tls_ca ($BATON_TLS_CA), or give the TLS port.")
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return ConfigError(
            f"The certificate of {address} has expired, or another CA signed it: check tls_ca ($BATON_TLS_CA)."
        )
    if "not in peer certificate" in details or "Hostname Verification" in details:
        return ConfigError(f"The certificate of {address} is made out to another name: connect by a name that it has.")
    if "connect" in details and "Socket closed" in details:
        return NoWorkers(
            f"{address} closed the connection at once. If it speaks TLS, give tls_ca ($BATON_TLS_CA); if it asks for a "
            "certificate of yours, tls_certificate and tls_key."
        )
    return None


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
    "PermissionDenied",
    "Unauthenticated",
    "error_from_rpc",
]
