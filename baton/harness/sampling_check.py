"""Whether a device draws the tokens that the CPU draws from the same logits."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from baton.engine.race.definition import GREEDY, KIND, row_parameters
from baton.engine.race.draw import draw_rows
from baton.engine.sampler import sample_on_device
from baton.engine.sequence import Sequence
from baton.protocol.request import Request, SamplingParams

ROWS_AT_A_TIME = 32


def tokens_equal_to_cpu(device: str, rows: int, vocab: int, seed: int = 0) -> float:
    """The share of rows of random logits and parameters for which the device draws the CPU's token; 1.0 is expected."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # numpy computes outside of Python's lock
        return sum(pool.map(_number_equal, _pieces(device, rows, vocab, seed))) / rows


def sampled(params: SamplingParams, seed: int) -> Sequence:
    """A sequence whose next token is drawn with these parameters and this seed."""
    return Sequence.start(Request("sampled", (0,) * (1 + seed % 7), replace(params, seed=seed)))


def _pieces(device: str, rows: int, vocab: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(logits, row parameters, the device's tokens)"""
    rng = random.Random(seed)
    generator = torch.Generator(device).manual_seed(seed)
    for start in range(0, rows, ROWS_AT_A_TIME):
        count = min(ROWS_AT_A_TIME, rows - start)
        spreads = torch.tensor([rng.choice([0.02, 0.5, 1.0, 3.0, 8.0]) for _ in range(count)], device=device)
        logits = torch.randn(count, vocab, generator=generator, device=device) * spreads[:, None]
        logits[::2] = logits[::2].bfloat16().float()  # many equal logits, as 16-bit models have them
        sequences = [sampled(_any_params(rng), rng.randrange(-(2**63), 2**63)) for _ in range(count)]
        tokens = sample_on_device(logits, sequences, frozenset()).token_ids.cpu().numpy()
        lengths = [len(item.tokens) for item in sequences]
        parameters = row_parameters([item.sampling for item in sequences], lengths, vocab)
        yield logits.cpu().numpy(), parameters, tokens


def _number_equal(piece: tuple[np.ndarray, np.ndarray, np.ndarray]) -> int:
    logits, rows, tokens = piece
    expected = logits.argmax(axis=1)
    (noisy,) = np.nonzero(rows[:, KIND] != GREEDY)
    expected[noisy] = draw_rows(logits[noisy], rows[noisy])
    return int((expected == tokens).sum())


def _any_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.0, 0.6, 1.0, 1.0, 2.0]),
        top_k=rng.choice([0, 0, 1, 20, 50, 6000]),
        top_p=rng.choice([1.0, 1.0, 0.95, 0.9, 0.1]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
    )
