"""A length distribution answers consistently, whatever its shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.router.policy.output_length import EDGES, NUM_BINS, LengthDistribution, bin_of, point

SHARES = st.floats(0.0, 1.0)


@st.composite
def distributions(draw: st.DrawFn) -> LengthDistribution:
    """A few bins with weight, a limit, and with or without calibration."""
    weights = draw(st.dictionaries(st.integers(0, NUM_BINS - 1), st.floats(1e-3, 1.0), min_size=1, max_size=6))
    shares = np.zeros(NUM_BINS)
    shares[list(weights)] = list(weights.values())
    levels = draw(st.none() | st.lists(SHARES, min_size=2, max_size=20).map(sorted).map(np.array))
    return LengthDistribution(shares / shares.sum(), draw(st.integers(1, EDGES[-1])), levels)


@given(distributions(), SHARES, SHARES)
def test_quantiles_rise_with_the_share_and_stay_within_the_limit(
    distribution: LengthDistribution, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert 1 <= distribution.quantile(low) <= distribution.quantile(high) <= distribution.limit


@settings(deadline=None)
@given(distributions(), st.integers(0, EDGES[-1]))
def test_what_remains_is_at_least_a_token_and_at_most_what_the_limit_leaves(
    distribution: LengthDistribution, emitted: int
) -> None:
    remaining = distribution.remaining(emitted)
    assert 1.0 <= remaining <= max(1, distribution.limit - emitted)


@given(distributions())
def test_the_mean_lies_between_the_shortest_and_the_longest(distribution: LengthDistribution) -> None:
    seen = np.flatnonzero(distribution.shares)
    shortest, longest = (min(EDGES[index], distribution.limit) for index in (seen[0], seen[-1]))
    assert shortest - 1e-6 <= distribution.remaining() <= longest + 1e-6


@given(st.integers(1, EDGES[-1] - 1))
def test_a_bin_holds_the_lengths_up_to_its_edge(tokens: int) -> None:
    index = bin_of(tokens)
    assert tokens <= EDGES[index]
    assert index == 0 or tokens > EDGES[index - 1]


@given(st.integers(1, 100_000), SHARES.filter(lambda share: 0.01 < share < 0.99))
def test_a_point_has_its_quantiles_within_a_bin_of_it(tokens: int, share: float) -> None:
    assert point(tokens).quantile(share) == pytest.approx(tokens, rel=0.09, abs=1.5)


def test_a_sequence_older_than_any_before_is_expected_to_live_on() -> None:
    distribution = point(100)
    assert distribution.remaining(40) == pytest.approx(60, abs=9)
    assert distribution.remaining(1000) == 500


def test_calibration_moves_a_stated_share_to_the_one_that_covers_it() -> None:
    shares = np.full(NUM_BINS, 1 / NUM_BINS)
    plain = LengthDistribution(shares)
    cautious = LengthDistribution(shares, levels=np.array([0.0, 0.8, 1.0]))
    assert cautious.quantile(0.5) == plain.quantile(0.8)
    assert cautious.quantile(1.0) == plain.quantile(1.0)
