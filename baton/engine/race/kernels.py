"""The kernels that read whole rows, each row cut into splits: see gpu.py.

The order of the splits does not matter: weights and counts are integers, and times and ranks are only compared. Tokens
beyond the vocabulary have the logit minus infinity: their weight is zero and they arrive after every other token.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from baton.engine.race.arithmetic import (
    BINS,
    BLOCK,
    COLUMNS,
    KIND,
    MAX_SPLITS,
    TOP_K,
    TOP_P,
    TRUNCATED,
    WHOLE,
    arrival_of,
    bin_of,
    distance_of,
    logit_of,
    mass_of,
    noise_of_block,
    parameters_of,
    peak_of,
    rank_of,
    ranks_before,
    share_of,
    time_of,
    weight_of,
    winner_of,
)


@triton.jit(do_not_specialize=["splits"])
def peaks_kernel(logits, vocab, splits, peaks, counts, bins):
    """Writes `peaks`, the highest rank of each split; NaN counts as infinite. Clears `counts` and `bins`."""
    row, split = tl.program_id(0), tl.program_id(1)
    here = logits + row.to(tl.int64) * vocab
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    best_token = lane
    for block in range(split, tl.cdiv(vocab, BLOCK), splits):
        token = lane + block * BLOCK
        x = tl.load(here + token, mask=token < vocab, other=float("-inf"))
        x = tl.where(x != x, float("inf"), x)
        higher = x > best
        best = tl.where(higher, x, best)
        best_token = tl.where(higher, token, best_token)
    tl.store(peaks + row * MAX_SPLITS + split, tl.max(rank_of(best, best_token)))
    if split == 0:
        tl.store(counts + row, 0)
        tl.store(bins + row * BINS + tl.arange(0, BINS), tl.zeros([BINS], dtype=tl.int32))


@triton.jit(do_not_specialize=["splits"])
def bins_kernel(logits, vocab, splits, rows, peaks, bins):
    """Writes `bins` of rows with top_k: the number of tokens by distance from the likeliest."""
    row, split = tl.program_id(0), tl.program_id(1)
    if tl.load(rows + row * COLUMNS + TOP_K) > 0:
        peak = logit_of(peak_of(peaks, row, splits))
        here = logits + row.to(tl.int64) * vocab
        lane = tl.arange(0, BLOCK)
        histogram = tl.zeros([BINS], dtype=tl.int32)
        for block in range(split, tl.cdiv(vocab, BLOCK), splits):
            token = lane + block * BLOCK
            x = tl.load(here + token, mask=token < vocab, other=float("-inf"))
            histogram += tl.histogram(bin_of(x, peak), BINS)
        tl.atomic_add(bins + row * BINS + tl.arange(0, BINS), histogram, sem="relaxed")


@triton.jit
def _race(here, vocab, split, splits, rows, row, peak, weighing, level, winner, again: tl.constexpr):
    """(first arrival, total weight) of a split's tokens; with `again` only tokens ranking before `winner` race."""
    seed, position, scale, min_weight = parameters_of(rows, row)
    lane = tl.arange(0, BLOCK)
    mass = tl.zeros([BLOCK], dtype=tl.int64)
    first = tl.full([BLOCK], float("inf"), dtype=tl.float32)
    first_token = tl.zeros([BLOCK], dtype=tl.int32)
    for block in range(split, tl.cdiv(vocab, BLOCK), splits):
        token = lane + block * BLOCK
        x = tl.load(here + token, mask=token < vocab, other=float("-inf"))
        z = distance_of(x, peak, scale)
        time = time_of(noise_of_block(block * BLOCK, seed, position), z)
        sooner = time < first
        if again:
            sooner = sooner & ranks_before(x, token, level, winner)
        if weighing:
            weight = weight_of(z)
            mass += weight.to(tl.int64)
            sooner = sooner & (weight >= min_weight)
        first = tl.where(sooner, time, first)
        first_token = tl.where(sooner, token, first_token)
    return tl.min(arrival_of(first, first_token)), tl.sum(mass)


@triton.jit(do_not_specialize=["splits"])
def race_kernel(logits, vocab, splits, rows, peaks, arrivals, masses):
    """Writes, for rows without top_k, `arrivals`, the first among the tokens that min_p keeps, and `masses`."""
    row, split = tl.program_id(0), tl.program_id(1)
    kind, top_k = tl.load(rows + row * COLUMNS + KIND), tl.load(rows + row * COLUMNS + TOP_K)
    if (kind >= WHOLE) & (top_k == 0):
        peak = logit_of(peak_of(peaks, row, splits))
        here = logits + row.to(tl.int64) * vocab
        weighing = (kind == TRUNCATED) | (parameters_of(rows, row)[3] > 0)
        arrival, mass = _race(here, vocab, split, splits, rows, row, peak, weighing, 0.0, 0, False)
        tl.store(arrivals + row * MAX_SPLITS + split, arrival)
        tl.store(masses + row * MAX_SPLITS + split, mass)


@triton.jit
def _last_bin(bins, row, top_k):
    """The bin of the k-th token by rank."""
    upto = tl.cumsum(tl.load(bins + row * BINS + tl.arange(0, BINS)))
    return tl.sum((upto < top_k).to(tl.int32))


@triton.jit(do_not_specialize=["splits"])
def check_kernel(logits, vocab, splits, rows, peaks, bins, arrivals, before, counts, noted, capacity: tl.constexpr):
    """Writes `noted`, the tokens that rank before the winner of `arrivals`, and their total weight in `before`.

    With top_k, `noted` has the tokens of the bins that contain the first k. `counts` is their number, of which up to
    `capacity` are listed, in any order.
    """
    row, split = tl.program_id(0), tl.program_id(1)
    if tl.load(rows + row * COLUMNS + KIND) == TRUNCATED:
        top_k = tl.load(rows + row * COLUMNS + TOP_K)
        scale = parameters_of(rows, row)[2]
        peak = logit_of(peak_of(peaks, row, splits))
        here = logits + row.to(tl.int64) * vocab
        last_bin = _last_bin(bins, row, top_k)
        winner = 0
        if top_k == 0:
            winner = winner_of(arrivals, row, splits)
        level = tl.load(here + winner)
        lane = tl.arange(0, BLOCK)
        mass = tl.zeros([BLOCK], dtype=tl.int64)
        for block in range(split, tl.cdiv(vocab, BLOCK), splits):
            token = lane + block * BLOCK
            x = tl.load(here + token, mask=token < vocab, other=float("-inf"))
            in_bins = (bin_of(x, peak) <= last_bin) & (token < vocab)
            member = tl.where(top_k > 0, in_bins, ranks_before(x, token, level, winner))
            hits = member.to(tl.int32)
            number = tl.sum(hits)
            if number > 0:
                mass += tl.where(member, weight_of(distance_of(x, peak, scale)), 0).to(tl.int64)
                place = tl.atomic_add(counts + row, number, sem="relaxed")
                if place < capacity:
                    places = tl.cumsum(hits) + (place - 1)
                    tl.store(noted + row * capacity + places, token, mask=member & (places < capacity))
        tl.store(before + row * MAX_SPLITS + split, tl.sum(mass))


@triton.jit(do_not_specialize=["splits"])
def again_kernel(logits, vocab, splits, rows, peaks, arrivals, masses, before, again, counts, capacity: tl.constexpr):
    """Writes `again`, the first arrival before a dropped winner, where too many tokens rank before it to be listed."""
    row, split = tl.program_id(0), tl.program_id(1)
    here = rows + row * COLUMNS
    if (tl.load(here + KIND) == TRUNCATED) & (tl.load(here + TOP_K) == 0) & (tl.load(counts + row) > capacity):
        target = share_of(mass_of(masses, row, splits), tl.load(here + TOP_P).to(tl.int64))
        if mass_of(before, row, splits) >= target:
            peak = logit_of(peak_of(peaks, row, splits))
            line = logits + row.to(tl.int64) * vocab
            winner = winner_of(arrivals, row, splits)
            weighing = parameters_of(rows, row)[3] > 0
            level = tl.load(line + winner)
            arrival, _ = _race(line, vocab, split, splits, rows, row, peak, weighing, level, winner, True)
            tl.store(again + row * MAX_SPLITS + split, arrival)
