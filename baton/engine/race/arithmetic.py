"""The arithmetic of definition.py in Triton, operation by operation, for all kernels.

Compile without fused multiply-adds (`LAUNCH` of gpu.py): each product and sum must be rounded separately.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.random import philox_impl

from baton.engine.race import definition, noise

MAX_SPLITS = tl.constexpr(64)  # Most splits of a row.
BLOCK = tl.constexpr(2048)  # Tokens that a program handles at once.
COUNTERS = tl.constexpr(2048 // noise.TOKENS)
BINS = tl.constexpr(definition.BINS)
TOKEN_BITS = tl.constexpr(definition.TOKEN_BITS)
MAX_TOKEN = tl.constexpr(definition.MAX_TOKEN)
RANK_BITS = tl.constexpr(32 + definition.TOKEN_BITS)
TOP_BIT = tl.constexpr(1 << (31 + definition.TOKEN_BITS))
WHOLE = tl.constexpr(definition.WHOLE)
TRUNCATED = tl.constexpr(definition.TRUNCATED)
NEVER = tl.constexpr(1 << 62)  # Later than any arrival; its token is 0, which every row has.
COLUMNS = tl.constexpr(8)
TOP_K = tl.constexpr(definition.TOP_K)
TOP_P = tl.constexpr(definition.TOP_P)
MIN_WEIGHT = tl.constexpr(definition.MIN_WEIGHT)
KIND = tl.constexpr(definition.KIND)

_GROWTH = tl.constexpr(definition.GROWTH)
_DECAY = tl.constexpr(definition.DECAY)
_LOG1P = tl.constexpr(definition.LOG1P)
_LN2 = tl.constexpr(definition.LN2)
_FARTHEST = tl.constexpr(definition.FARTHEST)
_WEIGHT_BITS = tl.constexpr(definition.WEIGHT_BITS)
_SHARE_BITS = tl.constexpr(definition.SHARE_BITS)
_SHARE_LOW = tl.constexpr((1 << definition.SHARE_BITS) - 1)
_ROOT_HALF_BITS = tl.constexpr(definition.ROOT_HALF_BITS)
_ONE_BITS = tl.constexpr(definition.ONE_BITS)
_FIRST_BIN = tl.constexpr(definition.FIRST_BIN)


@triton.jit
def horner(coefficients: tl.constexpr, degree: tl.constexpr, x):
    """A polynomial, as definition.horner."""
    value = tl.zeros_like(x) + coefficients[degree]
    for step in tl.static_range(degree):
        value = value * x
        value = value + coefficients[degree - 1 - step]
    return value


@triton.jit
def rank_of(x, token):
    """The rank of a token, as definition.rank."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ((key.to(tl.int64) + 2147483648) << TOKEN_BITS) | (token ^ MAX_TOKEN).to(tl.int64)


@triton.jit
def logit_of(rank):
    """The logit in a rank."""
    key = ((rank >> TOKEN_BITS) - 2147483648).to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def distance_of(x, peak, scale):
    """z of a token, as definition.distance."""
    return tl.minimum((peak - x) * scale, _FARTHEST)


@triton.jit
def weight_of(z):
    """The integer weight of a token, as definition.weight."""
    whole = z.to(tl.int32)
    scaled = horner(_DECAY, 6, z - whole.to(tl.float32))
    scaled = scaled * ((127 - whole + _WEIGHT_BITS) << 23).to(tl.float32, bitcast=True)
    scaled = scaled + 0.5
    return scaled.to(tl.int32)


@triton.jit
def share_of(total, top_p):
    """top_p of the total weight, as definition.share."""
    part = (total >> _SHARE_BITS) * top_p + (((total & _SHARE_LOW) * top_p + _SHARE_LOW) >> _SHARE_BITS)
    return part + (top_p >> _SHARE_BITS)


@triton.jit
def bin_of(x, peak):
    """The bin of a token, as definition.bins."""
    step = (peak - x).to(tl.int32, bitcast=True) >> 20
    return tl.minimum(tl.maximum(step - _FIRST_BIN, 0), BINS - 1)


@triton.jit
def clock(bits):
    """E of a token's random bits, as definition.clock."""
    early = bits >= 2147483648
    a = tl.where(early, ~bits, bits).to(tl.float32)
    a = a + 0.5
    a = a * 2.3283064365386963e-10
    u = tl.where(early, 1.0 - a, a)
    shifted = u.to(tl.int32, bitcast=True) + (_ONE_BITS - _ROOT_HALF_BITS)
    exponent = (shifted >> 23) - 127
    f = ((shifted & 0x007FFFFF) + _ROOT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    f = tl.where(exponent == 0, -a, f)
    square = f * f
    tail = horner(_LOG1P, 7, f)
    tail = tail * f
    tail = tail * square
    half = square * 0.5
    tail = tail - half
    tail = tail + f
    turns = exponent.to(tl.float32) * _LN2
    return -(turns + tail)


@triton.jit
def time_of(bits, z):
    """E * 2^z, float32."""
    whole = z.to(tl.int32)
    time = clock(bits)
    time = time * ((whole + 127) << 23).to(tl.float32, bitcast=True)
    return time * horner(_GROWTH, 6, z - whole.to(tl.float32))


@triton.jit
def arrival_of(time, token):
    """A comparable arrival of a time and a token, int64."""
    return (time.to(tl.int32, bitcast=True).to(tl.int64) << TOKEN_BITS) | token.to(tl.int64)


@triton.jit
def _words(counter, seed, position):
    zero = tl.zeros_like(counter)
    return philox_impl(counter + 1, zero, zero, zero, seed, position)


@triton.jit
def noise_of_block(start, seed, position):
    """The random bits of the BLOCK tokens from `start` on."""
    counter = (tl.arange(0, COUNTERS) + start // 8).to(tl.uint64)
    w0, w1, w2, w3 = _words(counter, seed, position)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return tl.interleave(words.to(tl.uint32), (words >> 32).to(tl.uint32))


@triton.jit
def noise_of(token, seed, position):
    """The random bits of given tokens."""
    w0, w1, w2, w3 = _words((token // 8).to(tl.uint64), seed, position)
    word = token // 2 % 4
    bits = tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))
    return tl.where(token % 2 == 0, bits, bits >> 32).to(tl.uint32)


@triton.jit
def parameters_of(rows, row):
    """(seed, position, log2(e) / temperature, smallest weight)"""
    here = rows + row * COLUMNS
    low = tl.load(here).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(here + 1).to(tl.uint32, bitcast=True).to(tl.uint64)
    position = tl.load(here + 2).to(tl.uint32, bitcast=True).to(tl.uint64)
    scale = tl.load(here + 3).to(tl.float32, bitcast=True)
    return (high << 32) | low, position, scale, tl.load(here + MIN_WEIGHT)


@triton.jit
def peak_of(peaks, row, splits):
    """The rank of the row's likeliest token, which holds its logit and id."""
    lane = tl.arange(0, MAX_SPLITS)
    return tl.max(tl.load(peaks + row * MAX_SPLITS + lane, mask=lane < splits, other=0))


@triton.jit
def winner_of(arrivals, row, splits):
    """The row's token with the earliest arrival."""
    lane = tl.arange(0, MAX_SPLITS)
    first = tl.min(tl.load(arrivals + row * MAX_SPLITS + lane, mask=lane < splits, other=NEVER))
    return (first & MAX_TOKEN).to(tl.int32)


@triton.jit
def mass_of(masses, row, splits):
    """The total weight of a row."""
    lane = tl.arange(0, MAX_SPLITS)
    return tl.sum(tl.load(masses + row * MAX_SPLITS + lane, mask=lane < splits, other=0))


@triton.jit
def ranks_before(x, token, level, winner):
    """Whether a token with the logit x ranks before the winner, which has the logit `level`."""
    return (x > level) | ((x == level) & (token < winner))
