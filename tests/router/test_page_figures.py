"""What the page's plots and dots are made of: phases without gaps, percentiles, and which requests are shown."""

from __future__ import annotations

import random

import pytest

from baton.protocol.errors import Overloaded
from baton.protocol.handoff import HandoffReport
from baton.protocol.latency import Latency, percentile
from baton.protocol.request import FinishReason
from baton.router.core.completion import Completion
from baton.router.page.history import POINTS, History
from baton.router.page.tracks import Ended, ended_tracks, is_shown, spacing
from baton.router.request_phases import request_phases

LATENCY = Latency(arrival_s=1.0, routed_s=1.5, first_token_s=2.0, last_token_s=4.0, num_tokens=21)
REPORT = HandoffReport(exposed_s=0.25)


def completion(latency: Latency, request_id: str = "r", failed: bool = False) -> Completion:
    reason, error = (None, Overloaded("Full.")) if failed else (FinishReason.STOP, None)
    return Completion(
        *(request_id, "gateway-0", reason, error, 10, 21, latency, "prefill-0", "decode-0", 1, 0, REPORT, 0)
    )


@pytest.mark.parametrize(
    ("latency", "decode", "report", "ended_s", "expected"),
    [
        (LATENCY, "decode-0", REPORT, 4.0, "queue 1.0-1.5, prefill 1.5-2.0, handoff 2.0-2.25, decode 2.25-4.0"),
        (LATENCY, "prefill-0", None, 4.0, "queue 1.0-1.5, prefill 1.5-2.0, decode 2.0-4.0"),
        (LATENCY, "decode-0", None, None, "queue 1.0-1.5, prefill 1.5-2.0, handoff 2.0-None"),
        (LATENCY, "decode-0", REPORT, 2.1, "queue 1.0-1.5, prefill 1.5-2.0, handoff 2.0-2.1, decode 2.1-2.1"),
        (Latency(1.0, 1.5), "", None, None, "queue 1.0-1.5, prefill 1.5-None"),
        (Latency(1.0), "", None, 3.0, "queue 1.0-3.0"),
    ],
)
def test_the_phases_of_a_request_follow_each_other_without_gaps(
    latency: Latency, decode: str, report: HandoffReport | None, ended_s: float | None, expected: str
) -> None:
    phases = request_phases(latency, "prefill-0", decode, report, ended_s)
    assert ", ".join(f"{one.name} {one.start_s}-{one.end_s}" for one in phases) == expected


def test_a_request_that_a_worker_kept_over_a_restart_only_decodes() -> None:
    (only,) = request_phases(Latency(1.0), "", "decode-0", None, None)
    assert (only.name, only.worker, only.end_s) == ("decode", "decode-0", None)


def test_percentiles_are_within_a_tenth_of_the_exact_ones() -> None:
    history, generator = History(), random.Random(1)
    times = [generator.lognormvariate(-1.0, 1.0) for _ in range(4000)]
    for seconds in times:
        history.ended(completion(Latency(0.0, 0.0, seconds, seconds + 20 * seconds / 10, 21)))
    history.tick(100.0, 3, 4)
    (point,) = history.points
    assert point.ttft_p50_s == pytest.approx(percentile(times, 0.5), rel=0.1)
    assert point.ttft_p99_s == pytest.approx(percentile(times, 0.99), rel=0.1)
    assert point.tpot_p50_s == pytest.approx(percentile(times, 0.5) / 10, rel=0.1)
    assert (point.tokens_per_s, point.requests_per_s, point.queued, point.live) == (100.0, 4000, 3, 4)


def test_a_point_counts_the_latest_seconds_and_points_are_bounded() -> None:
    history = History()
    history.ended(completion(LATENCY))
    history.ended(completion(LATENCY, failed=True))
    for _ in range(POINTS + 20):
        history.tick(0.0, 0, 0)
    first, last = history.points[0], history.points[-1]
    assert len(history.points) == POINTS
    assert (last.requests_per_s, last.failed_per_s, last.ttft_p50_s, last.row()[5]) == (0.0, 0.0, None, None)
    assert first.requests_per_s == 0.0


def test_of_many_requests_some_are_shown_from_arrival_to_end() -> None:
    assert [spacing(rate) for rate in (0.0, 64.0, 65.0, 1000.0)] == [1, 1, 2, 16]
    ids = [f"request-{index}" for index in range(4096)]
    shown = {every: {one for one in ids if is_shown(one, every)} for every in (1, 4, 16)}
    assert shown[1] == set(ids) and shown[16] < shown[4] < shown[1]
    assert 900 < len(shown[4]) < 1150 and 200 < len(shown[16]) < 320


def test_a_track_has_the_moments_of_its_request_as_their_age() -> None:
    newest, older = Ended(completion(LATENCY), 4.0), Ended(completion(LATENCY, "older", failed=True), 3.0)
    (track,) = ended_tracks([newest, older], 3.5, 5.0)
    steps = [
        ["queue", "", 4000],
        ["prefill", "prefill-0", 3500],
        ["handoff", "decode-0", 3000],
        ["decode", "decode-0", 2750],
    ]
    assert track == ["r", "ended", steps, 1000]
    assert [one[1] for one in ended_tracks([newest, older], 0.0, 5.0)] == ["ended", "failed"]
