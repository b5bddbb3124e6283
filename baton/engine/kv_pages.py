"""The page pool: which pages are free, held or cached. Bookkeeping only; the executor owns the memory.

Every page is in exactly one of three states:

    free ──allocate──► held (references ≥ 1) ──release, content not committed──► free
                        ▲   │
                match   │   └──release, content committed──► cached ──evicted by allocate──► (held by its new owner)
                        └───────────────────────────────────────┘

A cached page keeps its KV under its prefix hash until it is evicted, least recently used first.
A held page can also be committed: then other sequences match it and share it by reference.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from baton.protocol.errors import InternalError


class OutOfPages(Exception):
    """Fewer pages are available than requested; nothing was changed."""


class PagePool:
    """Reference counts and prefix cache over `num_pages` pages of `page_size` token positions."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._references = [0] * num_pages
        self._generations = [0] * num_pages
        self._hashes: list[bytes | None] = [None] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._page_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # Oldest first.
        self._changes: dict[bytes, bool] = {}  # Hash → matchable now, since the last `take_changes`.

    @property
    def num_free(self) -> int:
        """Pages without contents."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages in the prefix cache without a reference."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can return now."""
        return len(self._free) + len(self._cached)

    @property
    def num_in_use(self) -> int:
        """Pages with a reference."""
        return self.num_pages - self.num_available

    def generation(self, page: int) -> int:
        """The number of times the page was allocated: a reference made for an older generation is stale."""
        return self._generations[page]

    def held(self, page: int) -> bool:
        """Whether a sequence, a reservation or a write in flight has a reference on the page."""
        return self._references[page] > 0

    def allocate(self, count: int) -> list[int]:
        """Allocate `count` pages with one reference each, evicting cached content when no page is free.

        Raises `OutOfPages` and changes nothing when fewer are available.
        """
        if count > self.num_available:
            raise OutOfPages(f"{count} pages wanted, {self.num_available} of {self.num_pages} available")
        pages = []
        for _ in range(count):
            page = self._free.pop() if self._free else self._evict()
            self._references[page] = 1
            self._generations[page] += 1
            pages.append(page)
        return pages

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Take a reference on the pages of the longest cached prefix of a hash chain."""
        pages = []
        for page_hash in hashes:
            page = self._page_of.get(page_hash)
            if page is None:
                break
            pages.append(page)
        self.share(pages)
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add a reference to each page (a match, or a write in flight that outlives its sequence)."""
        for page in pages:
            if self._references[page] == 0:
                if page not in self._cached:
                    raise InternalError(f"Page {page} was shared while it was free.")
                del self._cached[page]
            self._references[page] += 1

    def commit(self, page: int, page_hash: bytes) -> None:
        """Make a held, fully computed page matchable. A second page of equal content stays private."""
        if self._references[page] == 0:
            raise InternalError(f"Page {page} was committed while no sequence holds it.")
        if page_hash in self._page_of or self._hashes[page] is not None:
            return
        self._hashes[page] = page_hash
        self._page_of[page_hash] = page
        self._changes[page_hash] = True

    def release(self, pages: Sequence[int]) -> None:
        """Drop one reference to each page. Later pages count as older, so a chain is evicted from its end."""
        for page in reversed(pages):
            if self._references[page] <= 0:
                raise InternalError(f"Page {page} was released more often than it was taken.")
            self._references[page] -= 1
            if self._references[page] == 0:
                if self._hashes[page] is None:
                    self._free.append(page)
                else:
                    self._cached[page] = None

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        """Hashes that became matchable and that were evicted since the last call, each in its latest state."""
        changes, self._changes = self._changes, {}
        stored = [page_hash for page_hash, matchable in changes.items() if matchable]
        return stored, [page_hash for page_hash, matchable in changes.items() if not matchable]

    def matchable(self) -> list[bytes]:
        """The hash of every page that `match` would find."""
        return list(self._page_of)

    def check_integrity(self) -> None:
        """Raise `InternalError` unless every page is in exactly one state and the index agrees."""
        free, cached = set(self._free), set(self._cached)
        held = {page for page in range(self.num_pages) if self._references[page] > 0}
        if len(free) != len(self._free) or free & cached or free & held or cached & held:
            raise InternalError("A page is in two states at once.")
        if len(free) + len(cached) + len(held) != self.num_pages:
            raise InternalError("A page is in no state.")
        hashed = {page for page in range(self.num_pages) if self._hashes[page] is not None}
        if hashed != set(self._page_of.values()) or len(hashed) != len(self._page_of):
            raise InternalError("The prefix index and the pages disagree.")
        if cached - hashed or free & hashed:
            raise InternalError("A cached page has no hash, or a free page has one.")

    def release_all(self) -> None:
        """Release every page; committed pages stay cached."""
        for page in range(self.num_pages):
            while self._references[page]:
                self.release([page])

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        page_hash = self._hashes[page]
        if page_hash is None:
            raise InternalError(f"Cached page {page} has no hash.")
        self._hashes[page] = None
        del self._page_of[page_hash]
        self._changes[page_hash] = False
        return page
