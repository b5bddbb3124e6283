"""The batch sizes at which decode steps are captured as CUDA graphs, and the one a batch is padded to. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from baton.protocol.errors import ConfigError

STEP = 8  # between sizes from here on: at most 7 rows of a larger batch are padding


def graph_sizes(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4, then every eighth up to 256, then every 64th; `max_batch` itself is always the last."""
    if max_batch < 1:
        raise ConfigError(f"A step of {max_batch} sequences cannot be captured: max_batch must be at least 1.")
    sizes = [1, 2, 4, *range(STEP, 257, STEP), *range(320, max_batch, 64)]
    return (*(size for size in sizes if size < max_batch), max_batch)


def padded_size(count: int, sizes: Sequence[int]) -> int | None:
    """The smallest of the ascending `sizes` that holds `count` sequences; None when none does."""
    place = bisect_left(sizes, count)
    return sizes[place] if count and place < len(sizes) else None
