"""Tokenises prompts in threads, off the event loop that serves every stream."""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from baton.protocol.errors import Overloaded

MAX_THREADS = 4  # one encodes one to three MB of text a second
MAX_WAITING_BYTES = 16 << 20
SHORT_BYTES = 16 << 10  # a text up to this takes milliseconds
RETRY_AFTER_S = 1.0  # in which a thread encodes many prompts


class Encode(Protocol):
    """A tokenizer's `encode`, which lets other threads run."""

    def __call__(self, text: str, add_special_tokens: bool) -> list[int]: ...


def _threads() -> int:
    """One core is left to the event loop."""
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) - 1))


@dataclass(eq=False)
class Lane:
    """Encodes texts in a few threads, first come, first served.

    A text counts as waiting from its call until its thread has ended, even if its caller has left: texts are held
    nowhere else.
    """

    encode_text: Encode
    num_threads: int
    max_waiting_bytes: int = MAX_WAITING_BYTES
    waiting_bytes: int = 0  # of texts that are being encoded, too
    _threads: ThreadPoolExecutor = field(init=False)
    _free: asyncio.Semaphore = field(init=False)  # so that no text waits in the executor, which would keep it

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.num_threads, "encode")
        self._free = asyncio.Semaphore(self.num_threads)

    async def encode(self, text: str, num_bytes: int, add_special_tokens: bool) -> list[int]:
        """Token ids of a text of so many bytes; raises `Overloaded` when too much is waiting.

        A single text may be of any size. A cancelled caller's text is not encoded, unless a thread has started on it.
        """
        if self.waiting_bytes and self.waiting_bytes + num_bytes > self.max_waiting_bytes:
            raise Overloaded(
                f"Texts of {self.waiting_bytes} bytes wait to be tokenised, and this one has {num_bytes}; at most "
                f"{self.max_waiting_bytes} may wait. Try again shortly, or send token ids.",
                retry_after_s=RETRY_AFTER_S,
            )
        self.waiting_bytes += num_bytes
        try:
            await self._free.acquire()
        except BaseException:
            self.waiting_bytes -= num_bytes
            raise
        loop = asyncio.get_running_loop()

        def ended(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it all that waited
                loop.call_soon_threadsafe(self._ended, num_bytes)

        job = self._threads.submit(self.encode_text, text, add_special_tokens)
        job.add_done_callback(ended)
        return await asyncio.wrap_future(job)

    def _ended(self, num_bytes: int) -> None:
        self.waiting_bytes -= num_bytes
        self._free.release()


@dataclass(eq=False)
class EncodingPool:
    """Encodes texts of any size off the event loop. Short ones do not wait behind long ones, which may take seconds."""

    encode_text: Encode
    short: Lane = field(init=False)
    long: Lane = field(init=False)

    def __post_init__(self) -> None:
        self.short, self.long = Lane(self.encode_text, 1), Lane(self.encode_text, _threads())

    async def encode(self, text: str, num_bytes: int, add_special_tokens: bool) -> list[int]:
        """As `Lane.encode`; each lane has a bound of its own."""
        lane = self.short if num_bytes <= SHORT_BYTES else self.long
        return await lane.encode(text, num_bytes, add_special_tokens)
