"""Host memory for swapped pages: a bounded buffer of page-sized slots, and the copies in both directions."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from baton.protocol.errors import ConfigError


class PageCopies(Protocol):
    """Copies between the pages of a worker and its host memory."""

    def copy_out(self, pages: Sequence[int], slots: Sequence[int]) -> None:
        """Copy pages into slots, pairwise. When it returns, the pages may be overwritten."""
        ...

    def copy_in(self, slots: Sequence[int], pages: Sequence[int]) -> None:
        """Copy slots into pages, pairwise. When it returns, both may be read and overwritten."""
        ...


class HostPages:
    """`num_slots` pages of host memory for page storage `pages`; pinned memory if the storage is on a GPU.

    On a CPU the kernel allocates a slot's memory when the slot is first written. Raises `ConfigError` when memory
    cannot be pinned.
    """

    def __init__(self, pages: torch.Tensor, num_slots: int) -> None:
        self._pages = pages
        self._slots = torch.empty((num_slots, *pages.shape[1:]), dtype=pages.dtype)
        if pages.is_cuda and num_slots:
            unpin, address = pin(self._slots, torch.cuda.cudart())
            weakref.finalize(self, unpin, address).atexit = False

    def copy_out(self, pages: Sequence[int], slots: Sequence[int]) -> None:
        """Copy pages into slots, pairwise. When it returns, the pages may be overwritten."""
        for page, slot in zip(pages, slots, strict=True):
            self._slots[slot].copy_(self._pages[page], non_blocking=True)
        self._wait()

    def copy_in(self, slots: Sequence[int], pages: Sequence[int]) -> None:
        """Copy slots into pages, pairwise. When it returns, both may be read and overwritten."""
        for slot, page in zip(slots, pages, strict=True):
            self._pages[page].copy_(self._slots[slot], non_blocking=True)
        self._wait()

    def _wait(self) -> None:
        """Wait for the copies: reads and writes of our pages by peers are not ordered with our stream."""
        if self._pages.is_cuda:
            torch.cuda.current_stream(self._pages.device).synchronize()


def pin(memory: torch.Tensor, cudart: Any) -> tuple[Any, int]:
    """Lock a tensor's memory for copies by a GPU; returns the function that unlocks it, and that function's argument.

    `cudart` is torch's binding of the CUDA runtime. torch's own pinned memory comes in powers of two (16 GiB for 9),
    so it is not used. Raises `ConfigError` when CUDA refuses.
    """
    code = int(cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    if code:
        raise ConfigError(
            f"{memory.nbytes / (1 << 30):.1f} GiB of host memory for preempted sequences cannot be pinned (CUDA error "
            f"{code}): lower engine.swap_memory_gib."
        )
    return cudart.cudaHostUnregister, memory.data_ptr()
