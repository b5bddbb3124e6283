"""What is kept of recent requests stays bounded however many come, and still shows whether answers grow."""

from __future__ import annotations

from baton.protocol.latency import Latency
from baton.protocol.request import Request, SamplingParams
from baton.router.core.length_drift import KEPT, WINDOW_S, RecentAnswers
from baton.router.core.live_request import LiveRequest, Phase
from baton.router.policy.output_length import Prediction, point
from tests.router.hand_driven import submission


def _record(index: int, emitted: int, predicted: int = 10) -> LiveRequest:
    submit = submission(Request(f"r{index}", (1, 2, 3), SamplingParams(max_tokens=1000)))
    prediction = Prediction(point(predicted), (), ())
    return LiveRequest(
        submit, "gateway-0", "1", Latency(0.0), None, prediction, phase=Phase.CLOSED, final_tokens=emitted
    )


def test_a_flood_of_requests_keeps_a_bounded_share_of_them_spread_over_the_window() -> None:
    recent = RecentAnswers()
    for index in range(20 * KEPT):
        recent.add(_record(index, 20), now=index * WINDOW_S / (20 * KEPT))
        assert len(recent._requests) <= KEPT
    moments = [moment for moment, _ in recent._requests]
    assert moments == sorted(moments)
    assert moments[0] < WINDOW_S / 10
    assert recent.drift(WINDOW_S * 0.99) == 2.0


def test_after_the_flood_every_request_counts_again() -> None:
    recent = RecentAnswers()
    for index in range(5 * KEPT):
        recent.add(_record(index, 10), now=0.001 * index)
    assert recent._every > 1
    later = 10 * WINDOW_S
    for index in range(20):
        recent.add(_record(index, 30), now=later + index)
    assert recent._every == 1
    assert recent.drift(later + 20) == 3.0
