"""Random numbers that belong to a place in a sequence, not to a generator: (seed, position, token) → 32 bits.

Philox4x32-10 (Salmon et al. 2011): the key is the seed, the counter holds position and token. The same request draws
the same numbers on every worker and device, in every batch, however often it is resumed.
"""

from __future__ import annotations

import numpy as np

LANES = 1024  # neighbouring tokens have neighbouring counters
WORDS = 4  # that one counter gives
GROUP = LANES * WORDS  # tokens that share LANES counters: token t has word t // LANES % WORDS of its counter

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_PIECE = 8192  # counters at a time: they stay in the cache


def philox(counter: tuple[np.ndarray, ...], key: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Ten rounds over four words of counter and two of key, all uint64 below 2^32; the arrays broadcast."""
    shape = np.broadcast_shapes(*(word.shape for word in (*counter, *key)))
    c0, c1, c2, c3 = (np.array(np.broadcast_to(word, shape)) for word in counter)
    k0, k1 = key
    a, b = np.empty_like(c0), np.empty_like(c0)
    for _ in range(10):
        np.multiply(c0, _MULTIPLIERS[0], out=a)
        np.multiply(c2, _MULTIPLIERS[1], out=b)
        np.right_shift(b, _HALF, out=c0)
        c0 ^= c1
        c0 ^= k0
        np.bitwise_and(b, _LOW, out=c1)
        np.right_shift(a, _HALF, out=c2)
        c2 ^= c3
        c2 ^= k1
        np.bitwise_and(a, _LOW, out=c3)
        k0, k1 = (k0 + np.uint64(_KEY_STEPS[0])) & _LOW, (k1 + np.uint64(_KEY_STEPS[1])) & _LOW
    return c0, c1, c2, c3


def noise_of_all(seeds: np.ndarray, positions: np.ndarray, vocab: int) -> np.ndarray:
    """Random bits `[rows, vocab]` uint32 of every token; `seeds` `[rows]` int64, `positions` `[rows]` int64."""
    rows, groups = len(seeds), -(-vocab // GROUP)
    lanes = min(LANES, vocab)  # a small vocabulary needs no more counters than tokens
    bits = np.empty((rows, groups, WORDS, lanes), dtype=np.uint32)
    at_once = max(1, _PIECE // (groups * lanes))
    counters = (np.arange(groups)[:, None] * LANES + np.arange(lanes)).astype(np.uint64)
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        low, high, place = (words[:, None] for words in _words(seeds[part], positions[part]))
        for group in range(0, groups, _PIECE // LANES):
            these = slice(group, group + _PIECE // LANES)
            piece = counters[these].reshape(1, -1)
            words = philox((piece, place, np.zeros_like(piece), np.zeros_like(piece)), (low, high))
            for word in range(WORDS):
                bits[part, these, word] = words[word].reshape(len(low), -1, lanes)
    return bits.reshape(rows, -1)[:, :vocab] if lanes == LANES else bits[:, 0, 0]


def noise_of(seeds: np.ndarray, positions: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Random bits `[n]` uint32 of one token each; all arrays `[n]` int64."""
    bits = np.empty(len(tokens), dtype=np.uint32)
    for start in range(0, len(tokens), _PIECE):
        part = slice(start, start + _PIECE)
        token = tokens[part]
        counter = (token // GROUP * LANES + token % LANES).astype(np.uint64)
        low, high, place = _words(seeds[part], positions[part])
        words = philox((counter, place, np.zeros_like(counter), np.zeros_like(counter)), (low, high))
        bits[part] = np.choose(token // LANES % WORDS, words)
    return bits


def _words(seeds: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low and high word of the seeds, low word of the positions, as uint64."""
    wide = seeds.astype(np.int64).view(np.uint64)
    return wide & _LOW, wide >> _HALF, positions.astype(np.uint64) & _LOW
