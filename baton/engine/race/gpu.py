"""Draws tokens on a GPU, as definition.py defines it: a few kernels over all rows, without a sort or a wait.

`peaks` finds the likeliest token of each row. `race` lets all of a row's tokens race and sums their weights. Its winner
is the draw if top_p keeps it. Kept tokens are the first by rank, so tokens that rank after a dropped winner are dropped
too. Therefore `check` weighs and lists the tokens that rank before the winner, and `settle` repeats the race among them
until a winner is kept. Where they are too many to be listed, `again` has repeated the race already.

With top_k, `bins` counts tokens by their distance from the likeliest, `check` lists the tokens of the first bins, which
contain the first k, and `settle` does the rest among these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from baton.engine.race import definition
from baton.engine.race.arithmetic import BLOCK, MAX_SPLITS
from baton.engine.race.kernels import again_kernel, bins_kernel, check_kernel, peaks_kernel, race_kernel
from baton.engine.race.settle import settle_kernel

CAPACITY = 4096  # Tokens listed per row; a row with more is read whole.
PROGRAMS = 528  # Programs of a kernel: four for each multiprocessor of an H100.
LAUNCH: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}


def draw_rows(
    logits: torch.Tensor, rows: torch.Tensor, host_rows: np.ndarray, capacity: int = CAPACITY
) -> tuple[torch.Tensor, torch.Tensor]:
    """The token of each row, `[rows]` int64, and whether the row's largest logit is a finite number, `[rows]` bool.

    Where it is not finite, the token is arbitrary. Rows may be greedy. `logits` is `[rows, vocab]` float32 and
    contiguous; `host_rows` is the result of `row_parameters`, `rows` the same on the device.
    """
    count, vocab = logits.shape
    splits = min(MAX_SPLITS.value, -(-vocab // BLOCK.value), max(1, PROGRAMS // count))
    wide = torch.empty(5, count * MAX_SPLITS.value, dtype=torch.int64, device=logits.device)
    peaks, arrivals, masses, before, again = wide
    # The small array is last: Triton recompiles a kernel for addresses that are not multiples of 16 bytes.
    sizes = [count * definition.BINS, count * capacity, count]
    bins, noted, counts = torch.empty(sum(sizes), dtype=torch.int32, device=logits.device).split(sizes)
    tokens = torch.empty(count, dtype=torch.int64, device=logits.device)
    finite = torch.empty(count, dtype=torch.bool, device=logits.device)
    grid = (count, splits)
    whole = (logits, vocab, splits)
    by_count = host_rows[:, definition.TOP_K] > 0
    truncated = host_rows[:, definition.KIND] == definition.TRUNCATED
    peaks_kernel[grid](*whole, peaks, counts, bins, **LAUNCH)
    if by_count.any():
        bins_kernel[grid](*whole, rows, peaks, bins, **LAUNCH)
    if not by_count.all():
        race_kernel[grid](*whole, rows, peaks, arrivals, masses, **LAUNCH)
    if truncated.any():
        check_kernel[grid](*whole, rows, peaks, bins, arrivals, before, counts, noted, capacity, **LAUNCH)
    if (truncated & ~by_count).any():
        again_kernel[grid](*whole, rows, peaks, arrivals, masses, before, again, counts, capacity, **LAUNCH)
    settle_kernel[(count,)](
        *whole, rows, peaks, arrivals, masses, before, again, counts, noted, tokens, finite, capacity, **LAUNCH
    )
    return tokens, finite
