"""The draw of engine/race.py on a GPU: four kernels over all rows at once, no sort, no wait.

`peaks` finds the likeliest token of each row. `race` lets all of its tokens race, sums their weights and, where top_k
is set, counts tokens by their distance from the likeliest. A winner that its row keeps is the draw, because those kept
are first by rank: whatever a winner is not kept for, nothing after it by rank is kept either. So `check` weighs the
tokens before the winner, lets them race, and notes down which they are (with top_k: those of the first distances, that
hold the k first). `settle` takes the winner, or goes on among the few tokens noted down until one is kept.

Each row is cut into splits, which may run anywhere and in any order: weights and counts are integers, times and ranks
are only compared. Everything must be compiled without fused multiply-adds (`_LAUNCH`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.language.random import philox_impl

from engine import noise, race

CAPACITY = 4096  # tokens noted down per row; a row with more is read whole
MAX_SPLITS = 64
_PROGRAMS = 528  # about four for each multiprocessor of an H100
_LAUNCH: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}

_LANES = tl.constexpr(noise.LANES)
_GROUP = tl.constexpr(noise.GROUP)
_GROWTH = tl.constexpr(race.GROWTH)
_DECAY = tl.constexpr(race.DECAY)
_LOG1P = tl.constexpr(race.LOG1P)
_LN2 = tl.constexpr(race.LN2)
_FARTHEST = tl.constexpr(race.FARTHEST)
_WEIGHT_BITS = tl.constexpr(race.WEIGHT_BITS)
_SHARE_BITS = tl.constexpr(race.SHARE_BITS)
_SHARE_LOW = tl.constexpr((1 << race.SHARE_BITS) - 1)
_TOKEN_BITS = tl.constexpr(race.TOKEN_BITS)
_MAX_TOKEN = tl.constexpr(race.MAX_TOKEN)
_ROOT_HALF_BITS = tl.constexpr(race.ROOT_HALF_BITS)
_ONE_BITS = tl.constexpr(race.ONE_BITS)
_RANK_BITS = tl.constexpr(32 + race.TOKEN_BITS)
_TOP_BIT = tl.constexpr(1 << (31 + race.TOKEN_BITS))
_NEVER = tl.constexpr((1 << 62) - 1)  # later than any arrival
_WHOLE = tl.constexpr(race.WHOLE)
_TRUNCATED = tl.constexpr(race.TRUNCATED)
_MAX_SPLITS = tl.constexpr(MAX_SPLITS)
# Distances are counted in steps of an eighth of their size, from 2^-26 to 64: 256 bins of any scale of logits.
_BINS = tl.constexpr(256)
_FIRST_BIN = tl.constexpr((127 - 26) * 8)


@triton.jit
def _horner(coefficients: tl.constexpr, degree: tl.constexpr, x):
    value = tl.zeros_like(x) + coefficients[degree]
    for step in tl.static_range(degree):
        value = value * x
        value = value + coefficients[degree - 1 - step]
    return value


@triton.jit
def _rank(x, token):
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ((key.to(tl.int64) + 2147483648) << _TOKEN_BITS) | (token ^ _MAX_TOKEN).to(tl.int64)


@triton.jit
def _value(rank):
    key = ((rank >> _TOKEN_BITS) - 2147483648).to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _weight(z):
    whole = z.to(tl.int32)
    scaled = _horner(_DECAY, 6, z - whole.to(tl.float32))
    scaled = scaled * ((127 - whole + _WEIGHT_BITS) << 23).to(tl.float32, bitcast=True)
    scaled = scaled + 0.5
    return scaled.to(tl.int32)


@triton.jit
def _clock(bits):
    late = bits < 2147483648
    a = tl.where(late, bits, ~bits).to(tl.float32)
    a = a + 0.5
    a = a * 2.3283064365386963e-10
    u = tl.where(late, a, 1.0 - a)
    shifted = u.to(tl.int32, bitcast=True) + (_ONE_BITS - _ROOT_HALF_BITS)
    exponent = (shifted >> 23) - 127
    f = ((shifted & 0x007FFFFF) + _ROOT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    f = tl.where(exponent == 0, -a, f)
    square = f * f
    tail = _horner(_LOG1P, 7, f)
    tail = tail * f
    tail = tail * square
    half = square * 0.5
    tail = tail - half
    tail = tail + f
    turns = exponent.to(tl.float32) * _LN2
    return -(turns + tail)


@triton.jit
def _arrival(bits, z, token):
    whole = z.to(tl.int32)
    time = _clock(bits)
    time = time * ((whole + 127) << 23).to(tl.float32, bitcast=True)
    time = time * _horner(_GROWTH, 6, z - whole.to(tl.float32))
    return (time.to(tl.int32, bitcast=True).to(tl.int64) << _TOKEN_BITS) | token.to(tl.int64)


@triton.jit
def _noise(counter, low, high, position):
    zero = tl.zeros_like(counter)
    return philox_impl(counter, zero + position, zero, zero, low, high)


@triton.jit
def _bin(x, peak):
    exponent = (peak - x).to(tl.int32, bitcast=True) >> 20
    return tl.minimum(tl.maximum(exponent - _FIRST_BIN, 0), _BINS - 1)


@triton.jit
def _row_peak(peaks, row, splits):
    """(rank of the row's likeliest token, its logit)"""
    lane = tl.arange(0, _MAX_SPLITS)
    rank = tl.max(tl.load(peaks + row * _MAX_SPLITS + lane, mask=lane < splits, other=0))
    return rank, _value(rank)


@triton.jit
def _row_first(arrivals, row, splits):
    """The token that came in first."""
    lane = tl.arange(0, _MAX_SPLITS)
    first = tl.min(tl.load(arrivals + row * _MAX_SPLITS + lane, mask=lane < splits, other=_NEVER))
    return (first & _MAX_TOKEN).to(tl.int32)


@triton.jit
def _row_mass(masses, row, splits):
    lane = tl.arange(0, _MAX_SPLITS)
    return tl.sum(tl.load(masses + row * _MAX_SPLITS + lane, mask=lane < splits, other=0))


@triton.jit
def _parameters(rows, row):
    """(low and high word of the seed, position, log2(e) / temperature, smallest weight)"""
    low = tl.load(rows + row * 8).to(tl.uint32, bitcast=True)
    high = tl.load(rows + row * 8 + 1).to(tl.uint32, bitcast=True)
    position = tl.load(rows + row * 8 + 2).to(tl.uint32, bitcast=True)
    scale = tl.load(rows + row * 8 + 3).to(tl.float32, bitcast=True)
    return low, high, position, scale, tl.load(rows + row * 8 + 6)


@triton.jit
def _take(x, token, member, bits, peak, scale, min_weight, mass, first):
    """One quarter of a group of tokens: its members' weights and arrivals added to `mass` and `first`."""
    z = tl.minimum((peak - x) * scale, _FARTHEST)
    weight = _weight(z)
    arrival = _arrival(bits, z, token)
    mass += tl.where(member, weight, 0).to(tl.int64)
    return mass, tl.minimum(first, tl.where(member & (weight >= min_weight), arrival, _NEVER))


@triton.jit(do_not_specialize=["splits"])
def peaks_kernel(logits, vocab, splits, peaks, counts, bins):
    row, split = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, _GROUP)
    best = tl.zeros([_GROUP], dtype=tl.int64)
    for group in range(split, tl.cdiv(vocab, _GROUP), splits):
        token = lane + group * _GROUP
        x = tl.load(logits + row.to(tl.int64) * vocab + token, mask=token < vocab, other=float("-inf"))
        x = tl.where(x != x, float("inf"), x)  # not a number, nor is infinity
        best = tl.maximum(best, tl.where(token < vocab, _rank(x, token), 0))
    tl.store(peaks + row * _MAX_SPLITS + split, tl.max(best))
    if split == 0:
        tl.store(counts + row, 0)
        tl.store(bins + row * _BINS + tl.arange(0, _BINS), tl.zeros([_BINS], dtype=tl.int32))


@triton.jit(do_not_specialize=["splits"])
def race_kernel(logits, vocab, splits, rows, peaks, bins, arrivals, masses):
    row, split = tl.program_id(0), tl.program_id(1)
    kind = tl.load(rows + row * 8 + 7)
    if kind >= _WHOLE:
        low, high, position, scale, min_weight = _parameters(rows, row)
        counting = tl.load(rows + row * 8 + 4) > 0
        _, peak = _row_peak(peaks, row, splits)
        lane = tl.arange(0, _LANES)
        mass = tl.zeros([_LANES], dtype=tl.int64)
        first = tl.full([_LANES], _NEVER, dtype=tl.int64)
        histogram = tl.zeros([_BINS], dtype=tl.int32)
        for group in range(split, tl.cdiv(vocab, _GROUP), splits):
            words = _noise((lane + group * _LANES).to(tl.uint32), low, high, position)
            for quarter in tl.static_range(4):
                token = lane + (group * _GROUP + quarter * _LANES)
                there = token < vocab
                x = tl.load(logits + row.to(tl.int64) * vocab + token, mask=there, other=float("-inf"))
                mass, first = _take(x, token, there, words[quarter], peak, scale, min_weight, mass, first)
                if counting:
                    histogram += tl.histogram(_bin(x, peak), _BINS)
        tl.store(arrivals + row * _MAX_SPLITS + split, tl.min(first))
        tl.store(masses + row * _MAX_SPLITS + split, tl.sum(mass))
        if counting:
            tl.atomic_add(bins + row * _BINS + tl.arange(0, _BINS), histogram, sem="relaxed")


@triton.jit
def _last_bin(bins, row, top_k):
    """The bin of the k-th token by rank."""
    lane = tl.arange(0, _BINS)
    upto = tl.cumsum(tl.load(bins + row * _BINS + lane))
    return tl.sum((upto < top_k).to(tl.int32))


@triton.jit
def _note(noted, counts, row, token, member, capacity: tl.constexpr):
    """Append the members to the row's list, in any order."""
    hits = member.to(tl.int32)
    number = tl.sum(hits)
    if number > 0:
        place = tl.atomic_add(counts + row, number, sem="relaxed") + tl.cumsum(hits) - 1
        tl.store(noted + row * capacity + place, token, mask=member & (place < capacity))


@triton.jit(do_not_specialize=["splits"])
def check_kernel(
    logits, vocab, splits, rows, peaks, bins, arrivals, before, again, counts, noted, capacity: tl.constexpr
):
    """`before`: the weight of the tokens that rank before the winner of `arrivals`; `again`: the first of these."""
    row, split = tl.program_id(0), tl.program_id(1)
    kind = tl.load(rows + row * 8 + 7)
    if kind == _TRUNCATED:
        low, high, position, scale, min_weight = _parameters(rows, row)
        top_k = tl.load(rows + row * 8 + 4)
        _, peak = _row_peak(peaks, row, splits)
        here = logits + row.to(tl.int64) * vocab
        winner = _row_first(arrivals, row, splits)
        floor = _rank(tl.load(here + winner), winner) + 1
        last_bin = _last_bin(bins, row, top_k)
        lane = tl.arange(0, _LANES)
        mass = tl.zeros([_LANES], dtype=tl.int64)
        first = tl.full([_LANES], _NEVER, dtype=tl.int64)
        for group in range(split, tl.cdiv(vocab, _GROUP), splits):
            any_member = 0
            for quarter in tl.static_range(4):
                token = lane + (group * _GROUP + quarter * _LANES)
                x = tl.load(here + token, mask=token < vocab, other=float("-inf"))
                before_it = tl.where(top_k > 0, _bin(x, peak) <= last_bin, _rank(x, token) >= floor)
                member = before_it & (token < vocab)
                _note(noted, counts, row, token, member, capacity)
                any_member += tl.sum(member.to(tl.int32))
            if (any_member > 0) & (top_k == 0):
                words = _noise((lane + group * _LANES).to(tl.uint32), low, high, position)
                for quarter in tl.static_range(4):
                    token = lane + (group * _GROUP + quarter * _LANES)
                    x = tl.load(here + token, mask=token < vocab, other=float("-inf"))
                    member = (_rank(x, token) >= floor) & (token < vocab)
                    mass, first = _take(x, token, member, words[quarter], peak, scale, min_weight, mass, first)
        tl.store(before + row * _MAX_SPLITS + split, tl.sum(mass))
        tl.store(again + row * _MAX_SPLITS + split, tl.min(first))


@triton.jit
def _token_at(noted, place, listed):
    """The tokens that `settle` looks at: the `listed` ones noted down, or all."""
    return tl.where(listed > 0, tl.load(noted + place, mask=place < listed, other=0), place)


@triton.jit
def _count_from(here, noted, length, listed, floor):
    """How many tokens have at least the rank `floor`."""
    lane = tl.arange(0, _LANES)
    number = tl.zeros([_LANES], dtype=tl.int32)
    for start in range(0, length, _LANES):
        there = lane + start < length
        token = _token_at(noted, lane + start, listed)
        x = tl.load(here + token, mask=there, other=float("-inf"))
        number += (there & (_rank(x, token) >= floor)).to(tl.int32)
    return tl.sum(number)


@triton.jit
def _mass_from(here, noted, length, listed, floor, peak, scale):
    """What the tokens of at least the rank `floor` weigh."""
    lane = tl.arange(0, _LANES)
    mass = tl.zeros([_LANES], dtype=tl.int64)
    for start in range(0, length, _LANES):
        there = lane + start < length
        token = _token_at(noted, lane + start, listed)
        x = tl.load(here + token, mask=there, other=float("-inf"))
        weight = _weight(tl.minimum((peak - x) * scale, _FARTHEST))
        mass += tl.where(there & (_rank(x, token) >= floor), weight, 0).to(tl.int64)
    return tl.sum(mass)


@triton.jit
def _first_from(here, noted, length, listed, floor, peak, low, high, position, scale, min_weight):
    """Which of the tokens of at least the rank `floor` comes in first."""
    lane = tl.arange(0, _LANES)
    first = tl.full([_LANES], _NEVER, dtype=tl.int64)
    for start in range(0, length, _LANES):
        there = lane + start < length
        token = _token_at(noted, lane + start, listed)
        x = tl.load(here + token, mask=there, other=float("-inf"))
        z = tl.minimum((peak - x) * scale, _FARTHEST)
        counter = (token // _GROUP * _LANES + token % _LANES).to(tl.uint32)
        w0, w1, w2, w3 = _noise(counter, low, high, position)
        word = token // _LANES % 4
        bits = tl.where(word == 0, w0, tl.where(word == 1, w1, tl.where(word == 2, w2, w3)))
        member = there & (_rank(x, token) >= floor) & (_weight(z) >= min_weight)
        first = tl.minimum(first, tl.where(member, _arrival(bits, z, token), _NEVER))
    return (tl.min(first) & _MAX_TOKEN).to(tl.int32)


@triton.jit
def _share(total, top_p):
    return (total >> _SHARE_BITS) * top_p + (((total & _SHARE_LOW) * top_p + _SHARE_LOW) >> _SHARE_BITS)


@triton.jit
def _settle(
    here, vocab, row, splits, rows, arrivals, masses, before, again, counts, noted, peak, capacity: tl.constexpr
):
    """The token of a row with top_k or top_p."""
    low, high, position, scale, min_weight = _parameters(rows, row)
    top_k = tl.load(rows + row * 8 + 4)
    top_p = tl.load(rows + row * 8 + 5).to(tl.int64)
    noted += row * capacity
    number = tl.load(counts + row)
    listed = tl.where(number <= capacity, number, 0)
    length = tl.where(number <= capacity, number, vocab)
    if top_k > 0:
        bound = tl.zeros([], dtype=tl.int64)  # the rank of the k-th token, bit by bit
        bit = tl.full([], _TOP_BIT, dtype=tl.int64)
        for _ in range(_RANK_BITS):
            if _count_from(here, noted, length, listed, bound | bit) >= top_k:
                bound = bound | bit
            bit = bit >> 1
        target = _share(_mass_from(here, noted, length, listed, bound, peak, scale), top_p)
        winner = _first_from(here, noted, length, listed, bound, peak, low, high, position, scale, min_weight)
        floor = _rank(tl.load(here + winner), winner) + 1
        weight = _mass_from(here, noted, length, listed, floor, peak, scale)
    else:
        target = _share(_row_mass(masses, row, splits), top_p)
        winner = _row_first(arrivals, row, splits)
        weight = _row_mass(before, row, splits)
        if weight >= target:
            winner = _row_first(again, row, splits)
            floor = _rank(tl.load(here + winner), winner) + 1
            weight = _mass_from(here, noted, length, listed, floor, peak, scale)
    while weight >= target:
        floor = _rank(tl.load(here + winner), winner) + 1
        winner = _first_from(here, noted, length, listed, floor, peak, low, high, position, scale, min_weight)
        floor = _rank(tl.load(here + winner), winner) + 1
        weight = _mass_from(here, noted, length, listed, floor, peak, scale)
    return winner


@triton.jit(do_not_specialize=["splits"])
def settle_kernel(
    logits,
    vocab,
    splits,
    rows,
    peaks,
    arrivals,
    masses,
    before,
    again,
    counts,
    noted,
    tokens,
    finite,
    capacity: tl.constexpr,
):
    row = tl.program_id(0)
    kind = tl.load(rows + row * 8 + 7)
    rank, peak = _row_peak(peaks, row, splits)
    token = (rank & _MAX_TOKEN).to(tl.int32) ^ _MAX_TOKEN
    is_finite = (peak > float("-inf")) & (peak < float("inf"))
    if is_finite:
        if kind == _WHOLE:
            token = _row_first(arrivals, row, splits)
        if kind == _TRUNCATED:
            token = _settle(
                logits + row.to(tl.int64) * vocab,
                vocab,
                row,
                splits,
                rows,
                arrivals,
                masses,
                before,
                again,
                counts,
                noted,
                peak,
                capacity,
            )
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(finite + row, is_finite)


def draw_rows(
    logits: torch.Tensor, rows: torch.Tensor, kinds: np.ndarray, capacity: int = CAPACITY
) -> tuple[torch.Tensor, torch.Tensor]:
    """The token of each row, greedy ones included, and whether its logits have a finite maximum: `[rows]` int64, bool.

    `logits` is `[rows, vocab]` float32 and contiguous, `rows` beside it what `race.row_parameters` gives, `kinds` its
    last column on the host. A row without a finite maximum has any of its tokens.
    """
    count, vocab = logits.shape
    groups = -(-vocab // noise.GROUP)
    splits = min(MAX_SPLITS, groups, max(1, _PROGRAMS // count))
    wide = torch.empty(5, count * MAX_SPLITS, dtype=torch.int64, device=logits.device)
    peaks, arrivals, masses, before, again = wide
    narrow = torch.empty(count * (1 + race_bins() + capacity), dtype=torch.int32, device=logits.device)
    counts, bins, noted = narrow.split([count, count * race_bins(), count * capacity])
    tokens = torch.empty(count, dtype=torch.int64, device=logits.device)
    finite = torch.empty(count, dtype=torch.bool, device=logits.device)
    grid = (count, splits)
    peaks_kernel[grid](logits, vocab, splits, peaks, counts, bins, **_LAUNCH)
    if (kinds != race.GREEDY).any():
        race_kernel[grid](logits, vocab, splits, rows, peaks, bins, arrivals, masses, **_LAUNCH)
    if (kinds == race.TRUNCATED).any():
        check_kernel[grid](
            logits, vocab, splits, rows, peaks, bins, arrivals, before, again, counts, noted, capacity, **_LAUNCH
        )
    settle_kernel[(count,)](
        logits,
        vocab,
        splits,
        rows,
        peaks,
        arrivals,
        masses,
        before,
        again,
        counts,
        noted,
        tokens,
        finite,
        capacity,
        **_LAUNCH,
    )
    return tokens, finite


def race_bins() -> int:
    return int(_BINS.value)
