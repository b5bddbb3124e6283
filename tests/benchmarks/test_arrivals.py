"""Open-loop arrivals, and which request rates count as sustained."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from statistics import mean, pstdev

import pytest

from benchmarks.arrivals import LATE_S, Outcome, achieved_per_s, highest_kept, poisson_arrivals
from benchmarks.router import figures_of

PUNCTUAL = Outcome(50.0, 50.0, [0.002] * 100, [0.001] * 100)


def test_arrivals_have_exactly_the_rate_asked_for_and_stay_in_the_window() -> None:
    for rate, window in ((20.0, 3.0), (333.0, 0.5), (7.3, 10.0)):
        arrivals = poisson_arrivals(rate, window, seed=1)
        assert len(arrivals) == round(rate * window)
        assert arrivals == sorted(arrivals)
        assert all(0.0 <= moment < window for moment in arrivals)


def test_gaps_between_arrivals_are_spread_like_those_of_a_poisson_process() -> None:
    gaps = [after - before for before, after in pairwise(poisson_arrivals(100.0, 200.0, seed=3))]
    assert mean(gaps) == pytest.approx(0.01, rel=0.02)
    assert pstdev(gaps) / mean(gaps) == pytest.approx(1.0, abs=0.03)  # 0 for a metronome
    assert sum(gap > 0.01 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.01)  # 1/e


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others() -> None:
    assert poisson_arrivals(50.0, 2.0, seed=4) == poisson_arrivals(50.0, 2.0, seed=4)
    assert poisson_arrivals(50.0, 2.0, seed=4) != poisson_arrivals(50.0, 2.0, seed=5)


def test_a_very_low_rate_has_one_arrival() -> None:
    assert len(poisson_arrivals(0.1, 1.0, seed=0)) == 1


@pytest.mark.parametrize(
    ("outcome", "kept"),
    [
        (PUNCTUAL, True),
        (replace(PUNCTUAL, achieved_per_s=48.0), True),
        (replace(PUNCTUAL, achieved_per_s=47.0), False),
        (replace(PUNCTUAL, ttft_s=[0.002] * 95 + [0.3] * 5), False),
        (replace(PUNCTUAL, late_s=[0.001] * 95 + [0.3] * 5), False),
        (replace(PUNCTUAL, missing=1), False),
    ],
)
def test_a_rate_is_kept_when_requests_end_as_they_arrive_and_few_tokens_are_late(outcome: Outcome, kept: bool) -> None:
    assert outcome.kept is kept


def test_requests_that_end_on_time_are_achieved_at_the_offered_rate_and_late_ones_at_less() -> None:
    assert achieved_per_s(60, window_s=3.0, last_end_s=4.35, stream_s=1.28) == 20.0
    assert achieved_per_s(60, window_s=3.0, last_end_s=7.28 + LATE_S, stream_s=1.28) == pytest.approx(10.0)


def test_the_search_finds_the_highest_kept_rate_and_never_names_one_that_was_not_kept() -> None:
    found = highest_kept(300.0, 6, lambda rate: rate <= 70.0)
    assert 70.0 / 1.05 < found <= 70.0
    assert highest_kept(300.0, 6, lambda rate: True) == 300.0
    assert highest_kept(300.0, 6, lambda rate: False) == 0.0


def test_ratios_are_medians_over_the_turns_to_each_peer_at_loads_that_are_equal() -> None:
    def turn(scale: float) -> list[dict[str, float]]:
        names = ("open_added_ttft_ms_p50_20_per_s", "open_added_ttft_ms_p50_50_pct")
        return [{"requests_per_s": scale * value, **dict.fromkeys(names, value)} for value in (100.0, 200.0, 400.0)]

    figures = figures_of([turn(1.0), turn(3.0), turn(2.0)], ["", "_sglang", "_smg"])
    assert figures["requests_per_s_smg"] == 800.0
    assert figures["requests_ratio_to_sglang"] == 0.5
    assert figures["requests_ratio_to_smg"] == 0.25
    assert figures["open_added_ttft_ms_p50_20_per_s_ratio_to_smg"] == 0.25
    assert "open_added_ttft_ms_p50_50_pct_ratio_to_smg" not in figures  # each side's own load
