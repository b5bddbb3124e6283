"""A draw by its definition, one token at a time, and rows of random logits and parameters."""

from __future__ import annotations

import math

import numpy as np

from baton.engine.race import definition
from baton.engine.race.noise import noise
from baton.protocol.request import SamplingParams


def kept_in_float64(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float, slack: float
) -> set[int]:
    """The tokens of one row that exact arithmetic keeps, with top_p raised and min_p lowered by the share `slack`."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    largest = float(logits[order[0]])
    masses = [math.exp((float(logits[token]) - largest) / temperature) for token in order][: top_k or None]
    total = math.fsum(masses)
    kept, before = set(), 0.0
    for token, mass in zip(order, masses, strict=False):
        if (before < top_p * (1 + slack) * total or top_p == 1.0) and mass >= min_p * (1 - slack):
            kept.add(token)
        before += mass
    return kept


def drawn_plainly(logits: np.ndarray, row: np.ndarray) -> int:
    """The token of one row, in integer arithmetic; greedy rows too."""
    vocab = len(logits)
    order = sorted(range(vocab), key=lambda token: (-logits[token], token))
    if row[definition.KIND] == definition.GREEDY:
        return order[0]
    ranked = logits[order]
    z = definition.distance(ranked, ranked[:1], row[definition.SCALE : definition.SCALE + 1].view(np.float32))
    weights = [int(weight) for weight in definition.weight(z)]
    top_k = int(row[definition.TOP_K]) or vocab
    target = -(-sum(weights[:top_k]) * int(row[definition.TOP_P]) >> definition.SHARE_BITS)  # rounded up
    places, before = [], 0
    for place, weight in enumerate(weights[:top_k]):
        if (before < target or row[definition.TOP_P] == definition.ALL_KEPT) and weight >= row[definition.MIN_WEIGHT]:
            places.append(place)
        before += weight
    bits = noise(row[:2].view(np.int64), row[definition.POSITION : definition.POSITION + 1].astype(np.int64), vocab)[0]
    tokens = np.array(order)[places]
    return int(definition.arrival(bits[tokens], z[places], tokens).min() & definition.MAX_TOKEN)


def random_rows(rng: np.random.Generator, count: int, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """(logits `[count, vocab]`, parameters): each row with its own spread, some with many equal logits."""
    params = [
        SamplingParams(
            temperature=float(rng.choice([0.0, 0.05, 0.7, 1.0, 1.0, 3.0])),
            top_k=int(rng.choice([0, 0, 1, 5, 30])),
            top_p=float(rng.choice([1.0, 1.0, 0.9, 0.5, 0.05, 1e-9])),
            min_p=float(rng.choice([0.0, 0.0, 0.1, 1.0])),
            seed=int(rng.integers(-(2**63), 2**63)),
        )
        for _ in range(count)
    ]
    logits = (rng.standard_normal((count, vocab)) * rng.choice([0.0, 1e-3, 1.0, 6.0], (count, 1))).astype(np.float32)
    logits[::2] = np.round(logits[::2] * 4) / 4
    logits[::5, 1:] = np.where(rng.random((len(logits[::5]), vocab - 1)) < 0.3, -np.inf, logits[::5, 1:])
    return logits, definition.row_parameters(params, rng.integers(0, 10**6, count).tolist(), vocab)
