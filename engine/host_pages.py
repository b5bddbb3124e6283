"""Host memory for pages that had to make room: a bounded buffer of page-sized slots, and the copies to and fro."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class HostPages:
    """`num_slots` pages of host memory beside page storage `pages`; pinned where that is on a GPU.

    On a CPU the memory is only taken when a slot is first written.
    """

    def __init__(self, pages: torch.Tensor, num_slots: int) -> None:
        self._pages = pages
        self._slots = torch.empty((num_slots, *pages.shape[1:]), dtype=pages.dtype, pin_memory=pages.is_cuda)

    def copy_out(self, pages: Sequence[int], slots: Sequence[int]) -> None:
        """Copy pages into slots, pairwise. When it returns, the pages may be written by anybody."""
        for page, slot in zip(pages, slots, strict=True):
            self._slots[slot].copy_(self._pages[page], non_blocking=True)
        self._wait()

    def copy_in(self, slots: Sequence[int], pages: Sequence[int]) -> None:
        """Copy slots into pages, pairwise. When it returns, both may be read and written by anybody."""
        for slot, page in zip(slots, pages, strict=True):
            self._pages[page].copy_(self._slots[slot], non_blocking=True)
        self._wait()

    def _wait(self) -> None:
        """A peer's reads and writes of our pages are not ordered with our stream."""
        if self._pages.is_cuda:
            torch.cuda.current_stream(self._pages.device).synchronize()
