"""Errors of the client library: a failed call becomes an error of the cluster's own tree."""

from __future__ import annotations

import os
import re

import grpc

from baton.client.connection import CONNECT_S
from baton.client.listener import listener
from baton.client.proxy import proxy_of
from baton.protocol.errors import (
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

SILENT = "connections to it time out"
UNKNOWN_NAME = "the name cannot be resolved"
BROKEN_OFF = "the connection broke off"
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


def error_from_rpc(error: grpc.RpcError, address: str, limit_s: float | None = None) -> BatonError:
    """The error of a failed call, with the server's message if it sent one. `limit_s` is the call's timeout."""
    status, details = error.code().name, error.details() or ""  # type: ignore[attr-defined]
    sent = trailers(error)
    kind = ERRORS_BY_NAME.get(sent.get("baton-error", ""))
    if status == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        return InvalidRequest(f"A message is too large ({details}): the limit is access.max_message_mib.")
    if status == "RESOURCE_EXHAUSTED":
        return Overloaded(details or status, retry_after_s(sent))
    if kind is not None:
        return kind(details or status)
    if status == "UNAVAILABLE":
        return _tls_refusal(details, address) or NoWorkers(_unreachable(details, address))
    if status == "DEADLINE_EXCEEDED":
        within = "before the deadline" if limit_s is None else f"within {limit_s:g} s"
        return DeadlineExceeded(f"The server at {address} has not answered {within}.")
    if status == "UNIMPLEMENTED":
        return ConfigError(
            f"{address} does not answer this call: requests and administration have ports of their own "
            "(50051 and 50052 by default)."
        )
    if status == "CANCELLED":
        return Cancelled("The call was cancelled.")
    if "Stream removed" in details:
        return NoWorkers(_unreachable(details, address))
    return _BY_STATUS.get(status, BatonError)(
        f"The call to {address} failed with gRPC's status {status}: {details.rstrip('.') or 'no details'}."
    )


def _unreachable(details: str, address: str) -> str:
    """A sentence on why a server cannot be reached and what to do."""
    proxy, found = proxy_of(address, os.environ), cause(details)
    if proxy:
        return (
            f"The server at {address} cannot be reached through the proxy {proxy}: {found}. "
            "$no_proxy lists the addresses that need no proxy."
        )
    if found == BROKEN_OFF:
        return f"The connection to the server at {address} broke off: send the request again."
    if found == SILENT:
        return _silent(address)
    if found == UNKNOWN_NAME:
        return f"The name in {address} cannot be resolved: check its spelling, or give an IP address."
    return f"No Baton answers at {address}: start one with `baton up`, or give another address."


def _silent(address: str) -> str:
    process = listener(address)
    if process is None:
        return (
            f"{address} has not answered for {CONNECT_S:g} s: the server there hangs or is overloaded, or a firewall "
            "drops packets."
        )
    silence = f"The server at {address} (pid {process.pid}) accepts connections and does not answer: "
    if process.stopped:
        return f"{silence}the process is stopped; `kill -CONT {process.pid}` resumes it."
    return f"{silence}it hangs or is overloaded. `baton down` ends the cluster."


def cause(details: str) -> str:
    """A short reason why a connection failed, from gRPC's details."""
    low = details.lower()
    if low.startswith(("recvmsg", "sendmsg", "socket closed")):  # An open connection ended
        return BROKEN_OFF
    if "settings frame" in low or "timed out" in low or "deadline" in low:
        return SILENT
    if "refused" in low:
        return "the connection was refused"
    if "resolv" in low or "resolution" in low or "lookup" in low:
        return UNKNOWN_NAME
    if low and "failed to connect" not in low and "connections to all" not in low:
        return BROKEN_OFF
    return re.sub(r"^.*last error: [A-Z]+: (ipv[46]:\S+: )?", "", details).rstrip(".") or "no connection"


def _tls_refusal(details: str, address: str) -> BatonError | None:
    """The error of a failed TLS handshake, of which gRPC's details hold OpenSSL's message or nothing; else None."""
    if "WRONG_VERSION_NUMBER" in details:
        return ConfigError(f"{address} does not speak TLS: leave out tls_ca ($BATON_TLS_CA), or give the TLS port.")
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return ConfigError(
            f"The certificate of {address} has expired, or another CA signed it: check tls_ca ($BATON_TLS_CA)."
        )
    if "not in peer certificate" in details or "Hostname Verification" in details:
        return ConfigError(f"The certificate of {address} is for another name: connect to a name in the certificate.")
    if "connect" in details and "Socket closed" in details:
        return NoWorkers(
            f"{address} closed the connection at once. If it speaks TLS, give tls_ca ($BATON_TLS_CA); if it asks for a "
            "certificate of yours, tls_certificate and tls_key."
        )
    return None


def trailers(error: grpc.RpcError) -> dict[str, str]:
    """The trailing metadata of a failed call."""
    return {key: str(value) for key, value in error.trailing_metadata() or ()}  # type: ignore[attr-defined]


def retry_after_s(sent: dict[str, str]) -> float | None:
    """Seconds after which the server suggests a retry, from its trailing metadata; None without a suggestion."""
    after_ms = sent.get("retry-after-ms", "")
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
    "cause",
    "error_from_rpc",
]
