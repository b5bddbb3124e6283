"""Operations on a sequence's pages: allocate at the start, grow during decode, commit when full, release."""

from __future__ import annotations

from collections.abc import Callable

from baton.engine.kv_pages import PagePool
from baton.engine.sequence import Sequence, page_ids
from baton.protocol.prefix_hash import next_page_hashes, page_hashes


def _pages_for(num_tokens: int, page_size: int) -> int:
    return -(-num_tokens // page_size)


def take_pages(sequence: Sequence, pool: PagePool, root: bytes, *, reserve: int = 0, receiving: bool = False) -> bool:
    """Allocate pages for all tokens of a sequence, matching the cached prefix; False (no change) if they do not fit.

    The last token is always computed here, because its logits give the next one. A sequence that is `receiving` its KV
    from another worker needs no logits and may match every full page. A sequence whose prompt is to be scored matches
    none, because it needs the logits. `reserve` pages must remain available.
    """
    sequence.page_hashes = page_hashes(sequence.tokens, pool.page_size, root, sequence.page_hashes)
    usable = len(sequence.tokens) if receiving else len(sequence.tokens) - 1
    if sequence.score_until:
        usable = 0
    cached = pool.match(sequence.page_hashes[: usable // pool.page_size])
    missing = _pages_for(len(sequence.tokens), pool.page_size) - len(cached)
    if missing + reserve > pool.num_available:
        pool.release(cached)
        return False
    sequence.page_table = page_ids(cached + pool.allocate(missing))
    sequence.computed = sequence.cached = len(cached) * pool.page_size
    sequence.committed = len(cached)
    return True


def grow(sequence: Sequence, pool: PagePool) -> bool:
    """Make sure that the next token has a page; False if no page is available."""
    if len(sequence.page_table) * pool.page_size >= len(sequence.tokens):
        return True
    if pool.num_available == 0:
        return False
    sequence.page_table.extend(pool.allocate(1))
    return True


def commit_pages(sequence: Sequence, pool: PagePool, root: Callable[[Sequence], bytes]) -> None:
    """Make the sequence's fully computed pages matchable.

    `root` returns the parent hash of the first page; it is called only if a page has filled up.
    """
    full = sequence.computed // pool.page_size
    if full <= sequence.committed:
        return
    hashes = sequence.page_hashes
    if len(hashes) < full:
        tokens = sequence.tokens[len(hashes) * pool.page_size : full * pool.page_size]
        hashes += next_page_hashes(tokens, pool.page_size, hashes[-1] if hashes else root(sequence))
    for index in range(sequence.committed, full):
        pool.commit(sequence.page_table[index], hashes[index])
    sequence.committed = full


def give_back_pages(sequence: Sequence, pool: PagePool) -> None:
    """Release every page; committed pages stay in the prefix cache. The sequence must be recomputed."""
    pool.release(sequence.page_table)
    sequence.page_table = page_ids(())
    sequence.computed = sequence.committed = 0
