"""Prompts become token ids beside the event loop, which every stream of this router waits for."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from cluster.errors import Overloaded

MAX_THREADS = 4  # one encodes one to three MB of text a second
MAX_WAITING_BYTES = 16 << 20
RETRY_AFTER_S = 1.0  # in which a thread makes room for many a prompt


class Encode(Protocol):
    """A tokenizer's `encode`, which lets other threads run."""

    def __call__(self, text: str, add_special_tokens: bool) -> list[int]: ...


def _threads() -> int:
    """One core is left to the event loop."""
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) - 1))


@dataclass(eq=False)
class EncodingPool:
    """Encodes texts of any size in a few threads, first come, first served.

    Even a small text leaves the event loop: the threads take turns with it, so a rule by size would save little.
    """

    encode_text: Encode
    num_threads: int = field(default_factory=_threads)
    max_waiting_bytes: int = MAX_WAITING_BYTES
    waiting_bytes: int = 0  # of texts that are being encoded, too
    _threads: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.num_threads, "encode")

    async def encode(self, text: str, num_bytes: int, add_special_tokens: bool) -> list[int]:
        """Token ids of a text of so many bytes; raises `Overloaded` when too much waits already.

        A text alone may be of any size. One whose caller is cancelled is not encoded, unless a thread has begun.
        """
        if self.waiting_bytes and self.waiting_bytes + num_bytes > self.max_waiting_bytes:
            raise Overloaded(
                f"Texts of {self.waiting_bytes} bytes wait to be tokenised, and this one has {num_bytes}; at most "
                f"{self.max_waiting_bytes} may wait. Try again shortly, or send token ids.",
                retry_after_s=RETRY_AFTER_S,
            )
        self.waiting_bytes += num_bytes
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self.encode_text, text, add_special_tokens)
        finally:
            self.waiting_bytes -= num_bytes
