"""How a token is drawn, defined to the last bit, and the arithmetic with numpy.

A token is a pure function of (its row of logits, parameters, seed, position): the same alone or in a batch, with numpy
(draw.py) or on a GPU (kernels.py). Therefore sums are of integers, which do not depend on the order, and every float32
operation is rounded separately, with no fused operation and no library's exp or log.

1. Tokens are ranked by (logit descending, token id ascending).
2. z = min((largest logit - logit) * log2(e) / temperature, 40). A token has the integer weight round(2^28 * 2^-z).
3. The first top_k tokens are kept; of these, each token whose predecessors weigh less than top_p of the total; of
   these, each token that weighs at least min_p * 2^28.
4. With E = -ln(u) of the token's own 32 random bits (noise.py), the kept token with the smallest E * 2^z is drawn, and
   of equals the one with the lower id. Such a race of exponential clocks chooses each token with its softmax
   probability; Gumbel-max compares the logarithms of the same numbers.

E lies between 2^-33 and 23, so no token beyond z = 38 could win: the limit of 40 changes no draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from typing import Final

import numpy as np

from baton.protocol.request import SamplingParams

COLDEST: Final = 1e-6  # Lower temperatures are raised to this one, which is as good as greedy.
WEIGHT_BITS: Final = 28
SHARE_BITS: Final = 24  # Fraction bits of top_p.
FARTHEST: Final = 40.0  # Limit of z.
TOKEN_BITS: Final = 20
MAX_TOKEN: Final = (1 << TOKEN_BITS) - 1  # Largest token id that can be drawn.
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
ROOT_HALF_BITS: Final = 0x3F3504F3  # float32 sqrt(1/2).
ONE_BITS: Final = 0x3F800000  # float32 1.
# To find the tokens to keep, tokens are put into bins by their distance from the largest logit, in steps of an eighth
# of that distance, from 2^-26 to 64: fine enough at any scale of logits.
BINS: Final = 256
FIRST_BIN: Final = (127 - 26) * 8

# Columns of a row's parameters.
SEED_LOW, SEED_HIGH, POSITION, SCALE, TOP_K, TOP_P, MIN_WEIGHT, KIND = range(8)
GREEDY, WHOLE, TRUNCATED = range(3)  # Kinds of rows. A row with min_p alone is whole, because ranks do not matter.
ALL_KEPT: Final = 1 << SHARE_BITS  # A top_p of 1.


def row_parameters(params: Seq[SamplingParams], positions: Seq[int], vocab: int) -> np.ndarray:
    """The parameters of each row for the draw, `[rows, 8]` int32.

    The columns are: low and high word of the seed, position, float32 bits of log2(e) / temperature, top_k (0: all),
    top_p * 2^24, the smallest weight kept, the kind of row.

    Raises `ValueError` for a vocabulary of more than 2^20 tokens.
    """
    if vocab > MAX_TOKEN + 1:
        raise ValueError(f"A vocabulary of {vocab} tokens is too large to sample from: at most {MAX_TOKEN + 1}.")
    rows = np.empty((len(params), 8), dtype=np.int32)
    rows.view(np.int64)[:, 0] = [item.seed or 0 for item in params]
    rows[:, POSITION] = positions
    scales = [math.log2(math.e) / max(item.temperature, COLDEST) for item in params]
    rows[:, SCALE] = np.array(scales, np.float32).view(np.int32)
    rows[:, TOP_K] = [item.top_k if item.top_k < vocab else 0 for item in params]
    rows[:, TOP_P] = [max(1, round(item.top_p * ALL_KEPT)) for item in params]
    rows[:, MIN_WEIGHT] = [math.ceil(item.min_p * (1 << WEIGHT_BITS)) for item in params]
    truncated = (rows[:, TOP_K] > 0) | (rows[:, TOP_P] < ALL_KEPT)
    greedy = [item.greedy for item in params]
    rows[:, KIND] = np.where(greedy, GREEDY, np.where(truncated, TRUNCATED, WHOLE))
    return rows


def rank(x: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """An int64 that is larger for tokens of higher rank: 32 bits of the logit's order, 20 of the token id."""
    bits = np.where(x == 0.0, np.float32(0.0), x).view(np.int32)  # Minus zero becomes zero.
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ranks: np.ndarray = ((key.astype(np.int64) + (1 << 31)) << TOKEN_BITS) | (tokens ^ MAX_TOKEN)
    return ranks


def distance(x: np.ndarray, largest: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """z, float32: a token is 2^z times less likely than the likeliest one."""
    z: np.ndarray = largest - x
    z *= scale
    np.minimum(z, np.float32(FARTHEST), out=z)
    return z


def weight(z: np.ndarray) -> np.ndarray:
    """round(2^28 * 2^-z), int32."""
    whole = z.astype(np.int32)
    scaled = horner(DECAY, z - whole.astype(np.float32))
    scaled *= ((127 + WEIGHT_BITS - whole) << 23).view(np.float32)
    scaled += np.float32(0.5)
    return scaled.astype(np.int32)


def share(total: np.ndarray, top_p: np.ndarray) -> np.ndarray:
    """top_p of the total, rounded up; both int64, `top_p` in units of 2^-24.

    For a top_p of 1 the result is more than the total, so that tokens of weight zero are kept too.
    """
    low_bits = (1 << SHARE_BITS) - 1
    part = (total >> SHARE_BITS) * top_p + (((total & low_bits) * top_p + low_bits) >> SHARE_BITS)
    above: np.ndarray = part + (top_p >> SHARE_BITS)
    return above


def bins(x: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """The bin of each token, int32: tokens of higher rank are never in a later bin."""
    step: np.ndarray = np.clip(((largest - x).view(np.int32) >> 20) - FIRST_BIN, 0, BINS - 1)
    return step


def arrival(bits: np.ndarray, z: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """A token's arrival in the race as a comparable int64: 31 bits of the float32 E * 2^z, 20 of the token id."""
    time = clock(bits)
    time *= power(z)
    time *= horner(GROWTH, z - z.astype(np.int32).astype(np.float32))
    arrivals: np.ndarray = (time.view(np.int32).astype(np.int64) << TOKEN_BITS) | tokens
    return arrivals


def power(z: np.ndarray) -> np.ndarray:
    """2^floor(z)."""
    return ((z.astype(np.int32) + 127) << 23).view(np.float32)


def clock(bits: np.ndarray) -> np.ndarray:
    """E = -ln((bits + 1/2) / 2^32) in float32, as precise near 0 as elsewhere, because small values decide a race.

    `bits` are uint32. The method is that of fdlibm's logf, from the smaller of u and 1 - u.
    """
    early = bits >= np.uint32(1 << 31)
    a = np.where(early, ~bits, bits).astype(np.float32)
    a += np.float32(0.5)
    a *= np.float32(2.0**-32)
    u = np.where(early, np.float32(1.0) - a, a)
    shifted = u.view(np.int32) + (ONE_BITS - ROOT_HALF_BITS)
    exponent = (shifted >> 23) - 127
    f = ((shifted & 0x007FFFFF) + ROOT_HALF_BITS).view(np.float32) - np.float32(1.0)
    f = np.where(exponent == 0, -a, f)  # Exact, because u is 1 - a there.
    square = f * f
    tail = horner(LOG1P, f)
    tail *= f
    tail *= square
    tail -= np.float32(0.5) * square
    tail += f
    time: np.ndarray = -(exponent.astype(np.float32) * np.float32(LN2) + tail)
    return time


def horner(coefficients: Seq[float], x: np.ndarray) -> np.ndarray:
    """A polynomial with each product and sum rounded to float32."""
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value *= x
        value += np.float32(coefficient)
    return value
