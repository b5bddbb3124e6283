"""The batch sizes at which decode steps are captured as CUDA graphs, and the one a batch is padded to. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from baton.protocol.errors import ConfigError

STEP = 8  # Distance between sizes from 8 to 256: a batch in this range gets at most 7 rows of padding.


def graph_sizes(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4, then multiples of 8 up to 256 and of 64 beyond; `max_batch` itself is always the last.

    Raises `ConfigError` when `max_batch` is below 1.
    """
    if max_batch < 1:
        raise ConfigError(f"A step of {max_batch} sequences cannot be captured: max_batch must be at least 1.")
    sizes = [1, 2, 4, *range(STEP, 257, STEP), *range(320, max_batch, 64)]
    return (*(size for size in sizes if size < max_batch), max_batch)


def padded_size(count: int, sizes: Sequence[int]) -> int | None:
    """The smallest of the ascending `sizes` that is at least `count`; None when all are smaller."""
    place = bisect_left(sizes, count)
    return sizes[place] if count and place < len(sizes) else None
