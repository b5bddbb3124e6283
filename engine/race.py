"""How a token is drawn, defined to the last bit, and computed with numpy.

A token is a pure function of (its row of logits, parameters, seed, position): the same alone or in a batch, here or in
engine/race_kernel.py on a GPU. To that end sums are of integers, which have no order, and every float32 operation
stands alone: nothing is fused or left to a library's exp or log.

1. Tokens are ranked by (logit descending, token id ascending).
2. z = min((largest logit - logit) * log2(e) / temperature, 40). A token has the integer weight round(2^28 * 2^-z).
3. Kept are the first top_k; of those each token whose predecessors weigh less than top_p of them all; of those each
   that weighs at least min_p * 2^28.
4. With E = -ln(u) of the token's own 32 random bits (engine/noise.py), the kept token with the smallest E * 2^z is
   drawn, of equals the one with the lower id. Such a race of exponential clocks, as Gumbel-max, which is its
   logarithm, chooses each token with its softmax probability.

E lies between 2^-33 and 23, so no token beyond z = 38 could win: the limit of 40 changes no draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from typing import Final

import numpy as np

from cluster.request import SamplingParams
from engine.noise import noise_of, noise_of_all

COLDEST: Final = 1e-6  # a lower temperature is as good as greedy
WEIGHT_BITS: Final = 28
SHARE_BITS: Final = 24  # of top_p
FARTHEST: Final = 40.0
TOKEN_BITS: Final = 20
MAX_TOKEN: Final = (1 << TOKEN_BITS) - 1  # no vocabulary is larger
# Polynomials from the constant term up, each coefficient a float32 value; 2^f, 2^-f on [0, 1], relative error 2e-7.
GROWTH: Final = (
    1.0,
    0.6931471824645996,
    0.24022722244262695,
    0.055495936423540115,
    0.009652440436184406,
    0.0012689351569861174,
    0.0002082919527310878,
)
DECAY: Final = (
    1.0,
    -0.6931471824645996,
    0.24022610485553741,
    -0.055499278008937836,
    0.009597169235348701,
    -0.0012917894637212157,
    0.00011498086678329855,
)
# (ln(1 + f) - f + f^2 / 2) / f^3 on [sqrt(1/2) - 1, sqrt(2) - 1]
LOG1P: Final = (
    0.333333283662796,
    -0.25000298023223877,
    0.20001468062400818,
    -0.16642247140407562,
    0.14202173054218292,
    -0.12972240149974823,
    0.12712308764457703,
    -0.08101557940244675,
)
LN2: Final = 0.6931471824645996
ROOT_HALF_BITS: Final = 0x3F3504F3  # of float32 sqrt(1/2)
ONE_BITS: Final = 0x3F800000

# Columns of a row's parameters.
SEED_LOW, SEED_HIGH, POSITION, SCALE, TOP_K, TOP_P, MIN_WEIGHT, KIND = range(8)
GREEDY, WHOLE, TRUNCATED = range(3)  # kinds of rows; min_p alone truncates nothing that must be ranked


def row_parameters(params: Seq[SamplingParams], positions: Seq[int], vocab: int) -> np.ndarray:
    """What the draw reads of each row, `[rows, 8]` int32: seed, position, float32 bits of log2(e) / temperature,
    top_k, top_p * 2^24, the smallest weight kept, the kind of row."""
    rows = np.empty((len(params), 8), dtype=np.int32)
    rows.view(np.int64)[:, 0] = [item.seed or 0 for item in params]
    rows[:, POSITION] = positions
    rows[:, SCALE] = np.array([math.log2(math.e) / max(item.temperature, COLDEST) for item in params], "f4").view("i4")
    top_k = rows[:, TOP_K] = [item.top_k if item.top_k < vocab else 0 for item in params]
    top_p = rows[:, TOP_P] = [max(1, round(item.top_p * (1 << SHARE_BITS))) for item in params]
    rows[:, MIN_WEIGHT] = [math.ceil(item.min_p * (1 << WEIGHT_BITS)) for item in params]
    truncated = (np.array(top_k) > 0) | (np.array(top_p) < 1 << SHARE_BITS)
    greedy = [item.greedy for item in params]
    rows[:, KIND] = np.where(greedy, GREEDY, np.where(truncated, TRUNCATED, WHOLE))
    return rows


def draw_rows(logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The token of each row, `[rows]` int64. `logits` is `[rows, vocab]` float32, each with a finite maximum; `rows`
    is what `row_parameters` gives, without greedy ones."""
    tokens = np.empty(len(rows), dtype=np.int64)
    at_once = max(1, (1 << 16) // logits.shape[1])  # what stays in the cache
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        for kind, draw in ((WHOLE, _draw_whole), (TRUNCATED, _draw_truncated)):
            (these,) = np.nonzero(rows[part, KIND] == kind)
            if len(these):
                tokens[start + these] = draw(logits[start + these], rows[start + these])
    return tokens


def kept_tokens(logits: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(token ids by rank, their z, whether each is kept), each `[rows, vocab]`."""
    ranked = np.sort(~rank(logits, np.arange(logits.shape[1])), axis=1)
    tokens = ranked & MAX_TOKEN
    z = distance(_value((~ranked >> TOKEN_BITS) - (1 << 31)), _largest(logits), _scale(rows))
    weights = weight(z)
    in_top_k = np.arange(logits.shape[1]) < np.where(rows[:, TOP_K], rows[:, TOP_K], logits.shape[1])[:, None]
    upto = (weights * in_top_k).cumsum(axis=1)
    target = share(upto[:, -1:], rows[:, TOP_P, None].astype(np.int64))
    kept = in_top_k & (upto - weights < target) & (weights >= rows[:, MIN_WEIGHT, None])
    return tokens, z, kept


def rank(x: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """An int64 that is larger for tokens that rank before: 32 bits of the logit's order, 20 of the token id."""
    bits = np.where(x == 0.0, np.float32(0.0), x).view(np.int32)  # minus zero is zero
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ((key.astype(np.int64) + (1 << 31)) << TOKEN_BITS) | (MAX_TOKEN - tokens)


def _value(key: np.ndarray) -> np.ndarray:
    """The logit of the upper 32 bits of its rank."""
    narrow = key.astype(np.int32)
    return (narrow ^ ((narrow >> 31) & 0x7FFFFFFF)).view(np.float32)


def distance(x: np.ndarray, largest: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """How many times less likely than the likeliest token, as a power of two."""
    z = largest - x
    z *= scale
    return np.minimum(z, np.float32(FARTHEST), out=z)


def weight(z: np.ndarray) -> np.ndarray:
    """round(2^28 * 2^-z), int64."""
    whole = z.astype(np.int32)
    scaled = horner(DECAY, z - whole.astype(np.float32))
    scaled *= ((127 + WEIGHT_BITS - whole) << 23).view(np.float32)
    scaled += np.float32(0.5)
    return scaled.astype(np.int64)


def share(total: np.ndarray, top_p: np.ndarray) -> np.ndarray:
    """top_p of the total, rounded up; `top_p` in units of 2^-24."""
    low_bits = (1 << SHARE_BITS) - 1
    return (total >> SHARE_BITS) * top_p + (((total & low_bits) * top_p + low_bits) >> SHARE_BITS)


def arrival(bits: np.ndarray, z: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """When a token comes in, to be compared: 31 bits of the float32 E * 2^z, 20 of the token id, int64."""
    whole = z.astype(np.int32)
    time = clock(bits)
    time *= ((whole + 127) << 23).view(np.float32)
    time *= horner(GROWTH, z - whole.astype(np.float32))
    return (time.view(np.int32).astype(np.int64) << TOKEN_BITS) | tokens


def clock(bits: np.ndarray) -> np.ndarray:
    """-ln((bits + 1/2) / 2^32) in float32, near 0 as precise as elsewhere: small values decide a race.

    `bits` are uint32; larger ones mean a shorter time. The method is that of fdlibm's logf, over a = min(u, 1 - u).
    """
    late = bits < np.uint32(1 << 31)
    a = np.where(late, bits, ~bits).astype(np.float32)
    a += np.float32(0.5)
    a *= np.float32(2.0**-32)
    u = np.where(late, a, np.float32(1.0) - a)
    shifted = u.view(np.int32) + (ONE_BITS - ROOT_HALF_BITS)
    exponent = (shifted >> 23) - 127
    f = ((shifted & 0x007FFFFF) + ROOT_HALF_BITS).view(np.float32) - np.float32(1.0)
    f = np.where(exponent == 0, -a, f)  # exact: u is 1 - a there
    square = f * f
    tail = horner(LOG1P, f)
    tail *= f
    tail *= square
    tail -= np.float32(0.5) * square
    tail += f
    return -(exponent.astype(np.float32) * np.float32(LN2) + tail)


def horner(coefficients: Seq[float], x: np.ndarray) -> np.ndarray:
    """A polynomial with each product and sum rounded to float32."""
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value *= x
        value += np.float32(coefficient)
    return value


def _draw_whole(logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    z = distance(logits, _largest(logits), _scale(rows))
    bits = noise_of_all(_seeds(rows), rows[:, POSITION].astype(np.int64), logits.shape[1])
    arrivals = arrival(bits, z, np.arange(logits.shape[1]))
    if rows[:, MIN_WEIGHT].any():
        arrivals[weight(z) < rows[:, MIN_WEIGHT, None]] = np.iinfo(np.int64).max
    return arrivals.min(axis=1) & MAX_TOKEN


def _draw_truncated(logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    tokens, z, kept = kept_tokens(logits, rows)
    row, place = np.nonzero(kept)
    bits = noise_of(_seeds(rows)[row], rows[row, POSITION].astype(np.int64), tokens[row, place])
    # Every row keeps its first token, so each has a run of its own.
    first = np.searchsorted(row, np.arange(len(rows)))
    return np.minimum.reduceat(arrival(bits, z[row, place], tokens[row, place]), first) & MAX_TOKEN


def _seeds(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows[:, :2]).view(np.int64)[:, 0]


def _scale(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows[:, SCALE, None]).view(np.float32)


def _largest(logits: np.ndarray) -> np.ndarray:
    return logits.max(axis=1, keepdims=True)
