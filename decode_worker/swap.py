"""Preempted sequences with their pages in host memory: slots and copies.

    running ──swap_out: pages → slots──► swapped out ──swap_in: slots → pages, except those still cached──► running
       │ more pages than free slots           │ cancelled: its slots are free
       ▼                                      ▼
    recomputed                             forgotten

A slot holds one page. Copies are performed in the order in which they were decided, so a slot or a page may get a
new owner at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.engine.sequence import Sequence
from baton.worker.core.role import SwapIn, SwapOut


@dataclass(frozen=True, slots=True)
class _Swapped:
    """A sequence's state when it was swapped out: slot i holds its page i."""

    slots: tuple[int, ...]
    computed: int
    cached: int


@dataclass(eq=False)
class SwapSpace:
    """The host slots of a worker. Every slot is free or holds one page of one waiting sequence."""

    num_slots: int
    page_size: int  # token positions
    swap_outs: int = 0  # so far
    _free: list[int] = field(init=False)
    _swapped: dict[str, _Swapped] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._free = list(range(self.num_slots - 1, -1, -1))

    def __len__(self) -> int:
        """Sequences that are swapped out."""
        return len(self._swapped)

    @property
    def num_in_use(self) -> int:
        """Slots in use; restoring their sequences needs about as many pages."""
        return self.num_slots - len(self._free)

    @property
    def computed_tokens(self) -> int:
        """Positions whose KV need not be computed again."""
        return sum(one.computed for one in self._swapped.values())

    def swap_out(self, sequence: Sequence) -> SwapOut | None:
        """Copy a sequence's computed pages to slots, before they are freed; None if there is nothing to keep or too few
        slots."""
        num_pages = -(-sequence.computed // self.page_size)
        if not 0 < num_pages <= len(self._free):
            return None
        slots = tuple(self._free.pop() for _ in range(num_pages))
        self._swapped[sequence.request_id] = _Swapped(slots, sequence.computed, sequence.cached)
        self.swap_outs += 1
        return SwapOut(tuple(sequence.page_table[:num_pages]), slots)

    def swap_in(self, sequence: Sequence) -> SwapIn | None:
        """Restore a sequence that has just taken pages; leading pages that are still cached are not
        copied. None if there is nothing to copy: it was not swapped out, or all of it is cached."""
        swapped = self.forget(sequence.request_id)
        if swapped is None or swapped.computed <= sequence.computed:
            return None
        cached_pages = sequence.computed // self.page_size
        sequence.computed, sequence.cached = swapped.computed, swapped.cached
        pages = sequence.page_table[cached_pages : len(swapped.slots)]
        return SwapIn(swapped.slots[cached_pages:], tuple(pages))

    def forget(self, request_id: str) -> _Swapped | None:
        """Free the slots of a sequence that is restored now, or never."""
        swapped = self._swapped.pop(request_id, None)
        if swapped is not None:
            self._free += swapped.slots
        return swapped
