"""Errors of gRPC become a clear sentence; errors sent by the server keep their message."""

from __future__ import annotations

import pytest

from baton.client.errors import (
    BROKEN_OFF,
    SILENT,
    UNKNOWN_NAME,
    BatonError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NoWorkers,
    Overloaded,
    cause,
    error_from_rpc,
)
from tests.client.failed_call import Failed

ADDRESS = "127.0.0.1:9"


WORDS = [
    ("UNAVAILABLE", "Socket closed", NoWorkers),
    ("UNAVAILABLE", "Stream removed", NoWorkers),
    ("UNAVAILABLE", "recvmsg:Connection reset by peer", NoWorkers),
    ("UNAVAILABLE", "keepalive watchdog timeout", NoWorkers),
    ("UNAVAILABLE", "GOAWAY received; Error code: 11; Debug Text: ping_timeout", NoWorkers),
    ("UNAVAILABLE", "", NoWorkers),
    ("UNKNOWN", "Stream removed", NoWorkers),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded),
    ("DEADLINE_EXCEEDED", "Stream removed (Deadline Exceeded)", DeadlineExceeded),
    ("CANCELLED", "Locally cancelled by application!", Cancelled),
    ("INTERNAL", "Received RST_STREAM with error code 2", BatonError),
    ("UNKNOWN", "", BatonError),
]


@pytest.mark.parametrize(("status", "details", "kind"), WORDS)
def test_a_grpc_failure_becomes_a_sentence_with_the_address(status: str, details: str, kind: type[BatonError]) -> None:
    error = error_from_rpc(Failed(status, details), ADDRESS, 5.0)
    assert isinstance(error, kind)
    assert error.message.endswith(".")
    assert ".." not in error.message
    assert not any(word in error.message for word in ("Deadline Exceeded", "Stream removed", "Socket", "watchdog"))
    assert ADDRESS in error.message or status == "CANCELLED"


def test_the_time_limit_of_a_call_is_reported() -> None:
    message = error_from_rpc(Failed("DEADLINE_EXCEEDED", "Deadline Exceeded"), ADDRESS, 5.0).message
    assert message == f"The server at {ADDRESS} has not answered within 5 s."


def test_an_error_sent_by_the_router_keeps_its_message() -> None:
    error = error_from_rpc(Failed("UNAVAILABLE", "No decode worker is there.", baton_error="NoWorkers"), ADDRESS)
    assert type(error) is NoWorkers
    assert error.message == "No decode worker is there."
    late = error_from_rpc(Failed("DEADLINE_EXCEEDED", "The deadline passed.", baton_error="DeadlineExceeded"), ADDRESS)
    assert late.message == "The deadline passed."
    full = error_from_rpc(
        Failed("RESOURCE_EXHAUSTED", "Full.", baton_error="Overloaded", retry_after_ms="250"), ADDRESS
    )
    assert isinstance(full, Overloaded)
    assert full.retry_after_s == 0.25
    large = Failed("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max (9 vs. 4)")
    assert isinstance(error_from_rpc(large, ADDRESS), InvalidRequest)


@pytest.mark.parametrize(
    ("details", "found"),
    [
        ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: connection attempt timed out "
         "before receiving SETTINGS frame", SILENT),
        ("Deadline Exceeded", SILENT),
        ("recvmsg:Connection timed out", BROKEN_OFF),
        ("errors resolving a.b:1: [field:hostname lookup error:address lookup failed for a.b:1]", UNKNOWN_NAME),
        ("DNS resolution failed for a.b:1: Domain name not found", UNKNOWN_NAME),
        ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9: Failed to connect to remote host: "
         "Connection refused", "the connection was refused"),
        ("failed to connect to all addresses; last error: UNKNOWN: ipv4:1.2.3.4:9: HTTP proxy returned response code "
         "403", "HTTP proxy returned response code 403"),
        ("failed to connect to all addresses; last error: INTERNAL: ipv6:%5B::1%5D:9: Failed to connect to remote "
         "host: No route to host", "Failed to connect to remote host: No route to host"),
        ("", "no connection"),
        ("Socket closed", BROKEN_OFF),
        ("keepalive watchdog timeout", BROKEN_OFF),
        ("recvmsg:Connection reset by peer", BROKEN_OFF),
    ],
)  # fmt: skip
def test_the_cause_of_a_failed_connection_is_short(details: str, found: str) -> None:
    assert cause(details) == found
