"""Detects corrupt pages: a sample of each handoff's pages is checksummed on both sides.

A page's checksum is over those of its KV heads, so that workers of any numbers of ranks have the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from baton.protocol.handoff import HandoffNotice, PageChecksum

Checksum = Callable[[int], int]  # Of a page with all its heads, by page id


def sampled(reservation_id: str, num_pages: int, every: int) -> tuple[int, ...]:
    """The pages of a handoff to checksum: one in `every`, always the last; none if `every` is 0.

    The sample's start differs between handoffs, so that every place is checked eventually.
    """
    if not every or not num_pages:
        return ()
    first = sum(reservation_id.encode()) % every
    return tuple(sorted({*range(first, num_pages, every), num_pages - 1}))


def checksums(pages: Sequence[tuple[int, int]], checksum: Checksum) -> tuple[PageChecksum, ...]:
    """The checksums of (place in the reservation, our page id) pairs."""
    return tuple(PageChecksum(place, checksum(page)) for place, page in pages)


def wrong_pages(notice: HandoffNotice, page_ids: Sequence[int], checksum: Checksum) -> list[int]:
    """Places of the reservation whose bytes here differ from those sent."""
    return [
        one.place
        for one in notice.checksums
        if not 0 <= one.place < len(page_ids) or checksum(page_ids[one.place]) != one.crc32
    ]
