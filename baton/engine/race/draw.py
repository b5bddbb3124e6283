"""Draws tokens with numpy, as definition.py defines it; sorts and races only tokens that cannot be ruled out."""

from __future__ import annotations

import numpy as np

from baton.engine.race.definition import (
    ALL_KEPT,
    BINS,
    MAX_TOKEN,
    MIN_WEIGHT,
    POSITION,
    SCALE,
    TOKEN_BITS,
    TOP_K,
    TOP_P,
    arrival,
    bins,
    distance,
    power,
    rank,
    share,
    weight,
)
from baton.engine.race.noise import noise

_PIECE = 1 << 16  # Logits handled at a time, so that they stay in the cache.
_MOST_ROWS = 1 << 10  # Rows handled at a time: a row's number and a rank fit into 63 bits.
_FEW = 1 / 8  # Up to this share of the tokens race without ruling out any.
_MARGIN = 1.001  # Far above the rounding errors of the compared numbers.


def draw_rows(logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The token of each row, `[rows]` int64.

    `logits` is `[rows, vocab]` float32, each row with a finite maximum; `rows` is the result of `row_parameters`,
    without greedy rows.
    """
    tokens = np.empty(len(rows), dtype=np.int64)
    at_once = max(1, min(_MOST_ROWS, _PIECE // logits.shape[1]))
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        z = distance(logits[part], _largest(logits[part]), _scale(rows[part]))
        kept = kept_tokens(logits[part], z, rows[part])
        tokens[part] = _race(z, kept, rows[part])
    return tokens


def _race(z: np.ndarray, kept: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """The kept token with the earliest arrival in each row; `kept` None means all."""
    seeds = np.ascontiguousarray(rows[:, :2]).view(np.int64)[:, 0]
    bits = noise(seeds, rows[:, POSITION].astype(np.int64), z.shape[1])
    if kept is not None and np.count_nonzero(kept) < _FEW * kept.size:
        row, token = np.divmod(np.flatnonzero(kept), z.shape[1])
        return _first(row, arrival(bits[row, token], z[row, token], token), len(rows))
    # E is at least 1 - u, so `soonest` is a lower bound of each arrival. Few tokens can beat the likely winner.
    soonest = (~bits).astype(np.float32)
    soonest *= np.float32(2.0**-32)
    soonest *= power(z)
    if kept is not None:
        soonest[~kept] = np.inf
    every = np.arange(len(rows))
    likely = soonest.argmin(axis=1)
    latest = -np.log((bits[every, likely] + 0.5) * 2.0**-32) * np.exp2(z[every, likely]) * _MARGIN
    row, token = np.divmod(np.flatnonzero(soonest <= latest[:, None].astype(np.float32)), z.shape[1])
    return _first(row, arrival(bits[row, token], z[row, token], token), len(rows))


def _first(row: np.ndarray, arrivals: np.ndarray, count: int) -> np.ndarray:
    """The token with the earliest arrival in each of `count` rows; `row` ascends and has every row."""
    return np.minimum.reduceat(arrivals, np.searchsorted(row, np.arange(count))) & MAX_TOKEN


def kept_tokens(logits: np.ndarray, z: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
    """Whether each token is kept, `[rows, vocab]` bool; None when all are."""
    by_count, by_weight = rows[:, TOP_K] > 0, rows[:, TOP_P] < ALL_KEPT
    smallest = rows[:, MIN_WEIGHT, None]
    if not (by_count.any() or by_weight.any() or smallest.any()):
        return None
    kept = np.ones(z.shape, dtype=bool)
    weights = weight(z) if by_weight.any() or smallest.any() else None
    totals = None if weights is None else weights.sum(axis=1, dtype=np.int64)
    if by_count.any():
        each = np.ones(z.shape, dtype=np.int32)
        _keep_first(kept, logits, each, np.where(by_count, rows[:, TOP_K], logits.shape[1]).astype(np.int64))
        if weights is not None:
            totals = np.where(kept, weights, 0).sum(axis=1, dtype=np.int64)
    if by_weight.any():
        assert weights is not None and totals is not None
        _keep_first(kept, logits, weights, share(totals, rows[:, TOP_P].astype(np.int64)))
    if smallest.any():
        kept &= weights >= smallest
    return kept


def _keep_first(kept: np.ndarray, logits: np.ndarray, measures: np.ndarray, target: np.ndarray) -> None:
    """Drop from `kept` each token whose predecessors by rank add up to at least `target` `[rows]` int64.

    `measures` are the addends. Every token that was dropped before must be dropped here too.
    """
    count = len(logits)
    bin_of = bins(logits, _largest(logits))
    index = (bin_of + BINS * np.arange(count)[:, None]).ravel()
    # Integers below 2^53, so exact in float64.
    upto = np.bincount(index, weights=measures.ravel(), minlength=count * BINS).reshape(count, BINS).cumsum(axis=1)
    last = (upto < target[:, None]).sum(axis=1)  # Beyond the last bin when the target exceeds the total.
    kept &= bin_of <= last[:, None]
    # The order within a bin matters only in the last one, of which a part may have to be dropped.
    row, token = np.divmod(np.flatnonzero(bin_of == last[:, None]), logits.shape[1])
    order = np.argsort((row << (TOKEN_BITS + 32)) - rank(logits[row, token], token))
    row, token = row[order], token[order]
    before = np.concatenate(([0], measures[row, token].astype(np.int64).cumsum()))[:-1]
    first = np.searchsorted(row, np.arange(count))
    here = upto[row, last[row] - 1].astype(np.int64) * (last[row] > 0)
    dropped = here + before - before[first[row]] >= target[row]
    kept[row[dropped], token[dropped]] = False


def _largest(logits: np.ndarray) -> np.ndarray:
    largest: np.ndarray = logits.max(axis=1, keepdims=True)
    return largest


def _scale(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows[:, SCALE, None]).view(np.float32)
