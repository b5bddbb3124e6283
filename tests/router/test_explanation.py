"""A request's way can be asked for afterwards, and the memory for it is bounded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baton.protocol.errors import BatonError, Cancelled, Overloaded, WorkerLost
from baton.protocol.handoff import HandoffReport
from baton.protocol.latency import Latency
from baton.protocol.request import FinishReason
from baton.router.core import explanation
from baton.router.core.completion import Completion
from baton.router.core.explanation import Explanations
from baton.router.core.totals import Totals
from baton.router.policy.output_length import point
from baton.router.policy.placement import Candidate, RoutingDecision


def decision(worker: str) -> RoutingDecision:
    return RoutingDecision(worker, None, False, "it was there")


def completion(request_id: str, error: BatonError | None = None) -> Completion:
    reason = None if error else FinishReason.STOP
    return Completion(
        *(request_id, "gateway-0", reason, error, 10, 5, Latency(0.0), "prefill-0", "decode-0", 1, 0, None, 0)
    )


def test_handoffs_local_answers_prefix_hits_and_prediction_errors_are_summed() -> None:
    kept = Explanations()
    candidate = Candidate("prefill-0", False, 0.25, 0.0, 10, 0.0)
    kept.decided("a", "policy", replace(decision("prefill-0"), candidates=(candidate,)), point(10))
    kept.decided("b", "policy", decision("decode-0"), point(10))
    kept.totals.placed(100, 32)
    latency = Latency(1.0, routed_s=1.5, first_token_s=2.0)
    handoff = HandoffReport(4, 2, 4096, 0.1, 0.0)
    kept.ended(replace(completion("a"), latency=latency, handoff=handoff), 3.0)
    kept.ended(replace(completion("b"), latency=latency, prefill_worker="decode-0"), 3.0)
    kept.ended(replace(completion("c", WorkerLost("gone")), handoff=handoff), 3.0)
    assert kept.totals == replace(
        Totals(100, 32), handoffs=1, handoff_bytes=4096, served_locally=1, predicted=1, prediction_error_s=0.25
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
