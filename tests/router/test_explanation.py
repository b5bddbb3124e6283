"""A request's way can be asked for afterwards, and the memory for it is bounded."""

from __future__ import annotations

import pytest

from baton.protocol.errors import BatonError, Cancelled, Overloaded, WorkerLost
from baton.protocol.latency import Latency
from baton.protocol.request import FinishReason
from baton.router.core import explanation
from baton.router.core.completion import Completion
from baton.router.core.explanation import Explanations
from baton.router.policy.output_length import point
from baton.router.policy.placement import RoutingDecision


def decision(worker: str) -> RoutingDecision:
    return RoutingDecision(worker, None, False, "it was there")


def completion(request_id: str, error: BatonError | None = None) -> Completion:
    reason = None if error else FinishReason.STOP
    return Completion(
        *(request_id, "gateway-0", reason, error, 10, 5, Latency(0.0), "prefill-0", "decode-0", 1, 0, None, 0)
    )


def test_the_newest_are_kept_and_the_oldest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "MAX_EXPLANATIONS", 3)
    kept = Explanations()
    for request_id in "abc":
        kept.decided(request_id, "policy", decision("prefill-0"), point(10))
    kept.decided("a", "policy", decision("prefill-1"), point(10))
    kept.decided("d", "policy", decision("prefill-0"), point(10))
    assert kept.get("b") is None
    latest = kept.get("a")
    assert latest is not None
    assert latest.decision.prefill == "prefill-1"


def test_the_end_is_told_beside_what_was_predicted() -> None:
    kept = Explanations()
    for request_id in "ab":
        kept.decided(request_id, "policy", decision("prefill-0"), point(100))
    kept.ended(completion("a"), 2.0)
    kept.ended(completion("b", WorkerLost("It died.")), 2.0)
    kept.ended(completion("forgotten"), 2.0)
    one, other = kept.get("a"), kept.get("b")
    assert one is not None
    assert other is not None
    assert (one.state, one.decode_worker, one.output_tokens) == ("finished", "decode-0", 5)
    assert one.output_tokens_p50 <= one.output_tokens_p90
    assert other.state == "It died."
    assert kept.get("forgotten") is None


def test_clients_that_cancel_are_counted_apart_from_failures() -> None:
    kept = Explanations()
    for error in (
        None,
        Cancelled("The client disconnected."),
        WorkerLost("It died."),
        Cancelled("Again."),
        Overloaded("Full."),
    ):
        kept.ended(completion("a", error), 2.0)
    assert (kept.finished, kept.cancelled, kept.failed) == (1, 2, 2)
