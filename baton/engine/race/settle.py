"""The kernel that finishes a draw, with one program per row: see gpu.py."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from baton.engine.race.arithmetic import (
    BLOCK,
    COLUMNS,
    KIND,
    MAX_TOKEN,
    NEVER,
    RANK_BITS,
    TOP_BIT,
    TOP_K,
    TOP_P,
    TRUNCATED,
    WHOLE,
    arrival_of,
    distance_of,
    logit_of,
    mass_of,
    noise_of,
    parameters_of,
    peak_of,
    rank_of,
    share_of,
    time_of,
    weight_of,
    winner_of,
)


@triton.jit
def _tokens(here, noted, listed, length, place):
    """(tokens, their logits, whether they exist) at `place`, in the list of `listed` tokens or, if 0, in the row."""
    token = tl.where(listed > 0, tl.load(noted + place, mask=place < listed, other=0), place)
    return token, tl.load(here + token, mask=place < length, other=float("-inf")), place < length


@triton.jit
def _count_from(here, noted, listed, length, floor):
    """The number of tokens with at least the rank `floor`."""
    number = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, length, BLOCK):
        token, x, there = _tokens(here, noted, listed, length, tl.arange(0, BLOCK) + start)
        number += (there & (rank_of(x, token) >= floor)).to(tl.int32)
    return tl.sum(number)


@triton.jit
def _mass_from(here, noted, listed, length, floor, peak, scale):
    """The total weight of the tokens with at least the rank `floor`."""
    mass = tl.zeros([BLOCK], dtype=tl.int64)
    for start in range(0, length, BLOCK):
        token, x, there = _tokens(here, noted, listed, length, tl.arange(0, BLOCK) + start)
        mass += tl.where(there & (rank_of(x, token) >= floor), weight_of(distance_of(x, peak, scale)), 0).to(tl.int64)
    return tl.sum(mass)


@triton.jit
def _first_from(here, noted, listed, length, floor, peak, rows, row):
    """The token with the earliest arrival among those with at least the rank `floor`."""
    seed, position, scale, min_weight = parameters_of(rows, row)
    first = tl.full([BLOCK], NEVER, dtype=tl.int64)
    for start in range(0, length, BLOCK):
        token, x, there = _tokens(here, noted, listed, length, tl.arange(0, BLOCK) + start)
        z = distance_of(x, peak, scale)
        time = time_of(noise_of(token, seed, position), z)
        racing = there & (rank_of(x, token) >= floor) & (weight_of(z) >= min_weight)
        first = tl.minimum(first, tl.where(racing, arrival_of(time, token), NEVER))
    return (tl.min(first) & MAX_TOKEN).to(tl.int32)


@triton.jit
def _after(here, winner):
    """The lowest rank above the winner's."""
    return rank_of(tl.load(here + winner), winner) + 1


@triton.jit
def _settle(here, vocab, row, splits, rows, arrivals, masses, before, again, counts, noted, peak, capacity):
    """The token of a row with top_k or top_p."""
    top_k = tl.load(rows + row * COLUMNS + TOP_K)
    top_p = tl.load(rows + row * COLUMNS + TOP_P).to(tl.int64)
    scale = parameters_of(rows, row)[2]
    number = tl.load(counts + row)
    listed = tl.where(number <= capacity, number, 0)
    length = tl.where(number <= capacity, number, vocab)
    winner = 0
    racing = True
    floor = tl.zeros([], dtype=tl.int64)
    if top_k > 0:
        bit = tl.full([], TOP_BIT, dtype=tl.int64)
        for _ in range(RANK_BITS):  # Finds the rank of the k-th token, bit by bit.
            if _count_from(here, noted, listed, length, floor | bit) >= top_k:
                floor = floor | bit
            bit = bit >> 1
        target = share_of(_mass_from(here, noted, listed, length, floor, peak, scale), top_p)
        weight = target
    else:
        target = share_of(mass_of(masses, row, splits), top_p)
        weight = mass_of(before, row, splits)
        winner = winner_of(arrivals, row, splits)
        if (weight >= target) & (number > capacity):
            winner = winner_of(again, row, splits)
            racing = False
        floor = _after(here, winner)
    while weight >= target:
        if racing:
            winner = _first_from(here, noted, listed, length, floor, peak, rows, row)
        racing = True
        floor = _after(here, winner)
        weight = _mass_from(here, noted, listed, length, floor, peak, scale)
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
    """Writes `tokens`, the draw of each row, and `finite`, whether the row's largest logit is a finite number."""
    row = tl.program_id(0)
    kind = tl.load(rows + row * COLUMNS + KIND)
    rank = peak_of(peaks, row, splits)
    peak = logit_of(rank)
    token = (rank & MAX_TOKEN).to(tl.int32) ^ MAX_TOKEN
    is_finite = (peak > float("-inf")) & (peak < float("inf"))
    if is_finite:
        if kind == WHOLE:
            token = winner_of(arrivals, row, splits)
        if kind == TRUNCATED:
            here = logits + row.to(tl.int64) * vocab
            noted += row * capacity
            token = _settle(
                here, vocab, row, splits, rows, arrivals, masses, before, again, counts, noted, peak, capacity
            )
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(finite + row, is_finite)
