"""Helpers of tests for page pools."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from baton.engine.kv_pages import PagePool


def count_matches(pool: PagePool, hashes: Sequence[bytes]) -> int:
    """Length of the longest cached prefix, in pages; takes no reference."""
    return sum(1 for _ in takewhile(set(pool.matchable()).__contains__, hashes))


def evict_all(pool: PagePool) -> None:
    """Evict every page without a reference from the prefix cache."""
    pool.release(pool.allocate(pool.num_available))
