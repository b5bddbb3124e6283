"""Sampling in numpy: its arithmetic against float64, its tokens against a plain implementation of the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine.race import definition
from baton.engine.race.draw import draw_rows, kept_tokens
from baton.engine.race.noise import noise
from baton.protocol.request import SamplingParams
from tests.engine.race_rows import drawn_plainly, kept_in_float64, random_rows

MANY = 20_000


def _rows(params: list[SamplingParams], positions: list[int], vocab: int) -> np.ndarray:
    return definition.row_parameters(params, positions, vocab)


def _philox(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 as Salmon et al. define it, in integer arithmetic."""
    low = (1 << 64) - 1
    words = [counter, 0, 0, 0]
    for turn in range(10):
        first, second = words[0] * 0xD2E7470EE14C6C93, words[2] * 0xCA5A826395121157
        keys = (key[0] + turn * 0x9E3779B97F4A7C15) & low, (key[1] + turn * 0xBB67AE8584CAA73B) & low
        words = [second >> 64 ^ words[1] ^ keys[0], second & low, first >> 64 ^ words[3] ^ keys[1], first & low]
    return words


def test_random_bits_are_philox_of_seed_position_and_token() -> None:
    seed, position = -(2**62) - 12345, 2**31 + 7
    bits = noise(np.array([seed]), np.array([position]), 50)[0]
    for token in (0, 1, 7, 8, 30, 49):
        word = _philox(token // 8 + 1, (seed % 2**64, position))[token // 2 % 4]
        assert int(bits[token]) == word >> 32 * (token % 2) & 0xFFFFFFFF


def test_random_bits_are_spread_over_seeds_positions_and_tokens() -> None:
    seeds, positions = (grid.ravel() for grid in np.meshgrid(np.arange(50), np.arange(50)))
    bits = noise(seeds, positions, 41)
    assert len(np.unique(bits)) > 0.999 * bits.size
    ones = np.unpackbits(np.ascontiguousarray(bits).view(np.uint8)).mean()
    assert abs(ones - 0.5) < 4 * 0.5 / np.sqrt(bits.size * 32)


def test_a_clock_is_the_logarithm_with_the_precision_of_float32() -> None:
    ends = np.arange(50_000)
    middle = np.random.default_rng(0).integers(0, 2**32, 100_000)
    bits = np.concatenate((ends, 2**32 - 1 - ends, 2**31 - 25_000 + ends, middle)).astype(np.uint32)
    rest = (2.0**32 - bits - 0.5) / 2**32  # 1 - u, exact in float64
    exact = np.where(bits >= 2**31, -np.log1p(-rest), -np.log((bits + 0.5) / 2**32))
    clocks = definition.clock(bits)
    assert np.abs(clocks / exact - 1).max() < 3e-7
    assert clocks.min() > 2**-34
    assert clocks.max() < 23


def test_weights_are_the_exponential_and_never_grow_with_the_distance() -> None:
    z = np.linspace(0, definition.FARTHEST, 400_001).astype(np.float32)
    weights = definition.weight(z)
    assert np.abs(weights - 2.0**28 * np.exp2(-z.astype(np.float64))).max() <= 1 + 2.0**28 * 2e-7
    assert (np.diff(weights) <= 0).all()
    assert weights[0] == 2**28


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    vocab=st.sampled_from([2, 50, 700]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 5.0]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 7, 400]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.4]),
)
def test_the_kept_tokens_are_those_of_float64_arithmetic(
    seed: int, vocab: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = (np.random.default_rng(seed).standard_normal((1, vocab)) * spread).astype(np.float32)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    rows = _rows([params], [0], vocab)
    z = definition.distance(logits, logits.max(axis=1, keepdims=True), rows[:, [definition.SCALE]].view(np.float32))
    mask = kept_tokens(logits, z, rows)
    kept = set(range(vocab)) if mask is None else {int(token) for token in np.flatnonzero(mask[0])}
    # Weights are rounded to 2^-28 of the largest, and to the precision of float32.
    slack = 2e-6
    assert kept_in_float64(logits[0], temperature, top_k, top_p, min_p, -slack) <= kept
    assert kept <= kept_in_float64(logits[0], temperature, top_k, top_p, min_p, slack)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), vocab=st.sampled_from([2, 9, 300, 5000]))
def test_a_draw_is_the_definition(seed: int, vocab: int) -> None:
    logits, rows = random_rows(np.random.default_rng(seed), 6, vocab)
    noisy = rows[:, definition.KIND] != definition.GREEDY
    expected = [drawn_plainly(line, row) for line, row in zip(logits[noisy], rows[noisy], strict=True)]
    assert draw_rows(logits[noisy], rows[noisy]).tolist() == expected


def test_a_draw_is_the_largest_logit_with_gumbel_noise() -> None:
    logits = np.random.default_rng(5).standard_normal((300, 500)).astype(np.float32)
    rows = _rows([SamplingParams(temperature=0.8, seed=seed) for seed in range(300)], list(range(300)), 500)
    uniform = (noise(np.arange(300), np.arange(300), 500) + 0.5) / 2**32
    assert draw_rows(logits, rows).tolist() == (logits / 0.8 - np.log(-np.log(uniform))).argmax(axis=1).tolist()


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(temperature=1.0), 12),
        (SamplingParams(temperature=1.0, top_k=5), 5),
        (SamplingParams(temperature=1.0, top_p=0.9), 8),
        (SamplingParams(temperature=1.0, min_p=0.2), 6),
        (SamplingParams(temperature=2.0), 12),
    ],
    ids=["whole", "top_k", "top_p", "min_p", "hot"],
)
@pytest.mark.parametrize("varied", ["seed", "position"])
def test_tokens_are_drawn_with_their_probabilities(params: SamplingParams, kept: int, varied: str) -> None:
    logits = np.log(0.75 ** np.arange(12)).astype(np.float32)
    places = np.arange(MANY)
    rows = np.repeat(_rows([params], [0], 12), MANY, axis=0)
    rows[:, definition.SEED_LOW if varied == "seed" else definition.POSITION] = places
    tokens = draw_rows(np.repeat(logits[None], MANY, axis=0), rows)
    shares = np.exp(logits[:kept].astype(np.float64) / params.temperature)
    expected = MANY * shares / shares.sum()
    counts = np.bincount(tokens, minlength=12)
    assert counts[kept:].sum() == 0
    chi_square = ((counts[:kept] - expected) ** 2 / expected).sum()
    assert chi_square < (kept - 1) + 3.1 * np.sqrt(2 * (kept - 1))  # exceeded by one in 1,000 correct samples


def test_a_row_is_drawn_alone_as_in_any_batch() -> None:
    rng = np.random.default_rng(8)
    logits, rows = random_rows(rng, 60, 3000)
    noisy = rows[:, definition.KIND] != definition.GREEDY
    logits, rows = logits[noisy], rows[noisy]
    together = draw_rows(logits, rows)
    order = rng.permutation(len(rows))
    assert (draw_rows(logits[order], rows[order]) == together[order]).all()
    assert [int(draw_rows(logits[i : i + 1], rows[i : i + 1])[0]) for i in range(len(rows))] == together.tolist()


def test_a_top_p_of_one_keeps_tokens_of_weight_zero_in_any_batch() -> None:
    logits = np.array([[0.0, -25.0, -26.0, -27.0]] * 2, dtype=np.float32)  # 2^-36 of the likeliest
    rows = _rows([SamplingParams(temperature=1.0, top_k=3), SamplingParams(temperature=1.0, top_p=0.5)], [0, 0], 4)
    z = definition.distance(logits, np.zeros((2, 1), np.float32), rows[:, [definition.SCALE]].view(np.float32))
    together, alone = kept_tokens(logits, z, rows), kept_tokens(logits[:1], z[:1], rows[:1])
    assert together is not None
    assert alone is not None
    assert together.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert alone.tolist() == together[:1].tolist()


def test_a_vocabulary_that_does_not_fit_a_rank_is_an_error() -> None:
    with pytest.raises(ValueError, match="too large"):
        _rows([SamplingParams()], [0], 2**20 + 1)
