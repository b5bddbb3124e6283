"""Tokenises prompts in threads, off the event loop that serves every stream."""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from baton.gateway.chat_prompt import ChatPrompt
from baton.protocol.errors import Overloaded

MAX_THREADS = 4  # Each encodes one to three MB of text per second
MAX_WAITING_BYTES = 16 << 20
SHORT_BYTES = 16 << 10  # A text of this size takes milliseconds
RETRY_AFTER_S = 1.0  # In this time a thread encodes many prompts


class Encode(Protocol):
    """Renders a conversation and tokenises; tokenisation releases the interpreter lock."""

    def __call__(self, text: str | ChatPrompt, add_special_tokens: bool) -> list[int]: ...


def _threads() -> int:
    """The number of threads for long texts; leaves one core to the event loop."""
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) - 1))


@dataclass(eq=False)
class Lane:
    """Encodes texts in a few threads, in order of arrival.

    A text counts as waiting from the call until its encoding has ended, even if the caller is cancelled, so the count
    bounds the memory of all texts.
    """

    encode_text: Encode
    num_threads: int
    max_waiting_bytes: int = MAX_WAITING_BYTES
    waiting_bytes: int = 0  # Including texts that are being encoded
    _threads: ThreadPoolExecutor = field(init=False)
    _free: asyncio.Semaphore = field(init=False)  # Free threads: the executor would keep a cancelled caller's text

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.num_threads, "encode")
        self._free = asyncio.Semaphore(self.num_threads)

    async def encode(self, text: str | ChatPrompt, num_bytes: int, add_special_tokens: bool) -> list[int]:
        """Token ids of a text or conversation of `num_bytes` bytes; raises `Overloaded` if too many bytes are waiting.

        A text may have any size if no other is waiting. The text of a cancelled caller is encoded only if a thread has
        started on it.
        """
        if self.waiting_bytes and self.waiting_bytes + num_bytes > self.max_waiting_bytes:
            raise Overloaded(
                f"{self.waiting_bytes} bytes of text are waiting for tokenisation, this text has {num_bytes}, and the "
                f"limit is {self.max_waiting_bytes}: retry later, or send token ids.",
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
            with contextlib.suppress(RuntimeError):  # The loop is closed, and nothing waits any more
                loop.call_soon_threadsafe(self._ended, num_bytes)

        job = self._threads.submit(self.encode_text, text, add_special_tokens)
        job.add_done_callback(ended)
        return await asyncio.wrap_future(job)

    def _ended(self, num_bytes: int) -> None:
        self.waiting_bytes -= num_bytes
        self._free.release()


@dataclass(eq=False)
class EncodingPool:
    """Encodes texts off the event loop. Short texts do not wait behind long ones, which may take seconds."""

    encode_text: Encode
    short: Lane = field(init=False)
    long: Lane = field(init=False)

    def __post_init__(self) -> None:
        self.short, self.long = Lane(self.encode_text, 1), Lane(self.encode_text, _threads())

    @property
    def waiting_bytes(self) -> int:
        """The bytes of all texts that wait or are being encoded."""
        return self.short.waiting_bytes + self.long.waiting_bytes

    async def encode(self, text: str | ChatPrompt, num_bytes: int, add_special_tokens: bool) -> list[int]:
        """As `Lane.encode`; each lane has its own limit."""
        lane = self.short if num_bytes <= SHORT_BYTES else self.long
        return await lane.encode(text, num_bytes, add_special_tokens)
