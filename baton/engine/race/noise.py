"""Random numbers keyed by (seed, position, token), 32 bits each, instead of drawn from a generator with a state.

Philox4x64-10 (Salmon et al. 2011) as in numpy: seed and position are the key, and each value of the counter, from 1 on,
gives bits to eight tokens, in ascending order from the low end of the first word. The same request draws the same
numbers on every worker and device and in every batch, even after it is resumed.
"""

from __future__ import annotations

import numpy as np

TOKENS = 8  # Tokens per value of the counter.


def noise(seeds: np.ndarray, positions: np.ndarray, vocab: int) -> np.ndarray:
    """Random bits `[rows, vocab]` uint32 of every token; `seeds` and `positions` are `[rows]` int64."""
    keys = np.stack((seeds, positions), axis=1).view(np.uint64)
    bits = np.empty((len(keys), -(-vocab // 2)), dtype="<u8")
    generator = np.random.Philox(key=0)
    state = generator.state  # A copy of the state before the first draw.
    for row, key in enumerate(keys):
        state["state"]["key"] = key
        generator.state = state
        bits[row] = generator.random_raw(bits.shape[1])
    return bits.view("<u4")[:, :vocab]
