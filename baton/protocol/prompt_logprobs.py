"""Log-probabilities of prompt tokens, on their way from the worker that computes them to the client's gateway."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from baton.protocol.bounds import Id, Length, Positive, Range
from baton.protocol.request import MAX_LOGPROBS, Request

TOKENS_PER_MESSAGE = 4096  # At most 640 KiB
_VALUES = Length(4 * TOKENS_PER_MESSAGE)
_LIKELY = Length(4 * TOKENS_PER_MESSAGE * MAX_LOGPROBS)


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of `len` consecutive prompt tokens, the first of which has the index `first`.

    Each token has its own and those of the `likely` likeliest tokens in its place. The first token of a prompt has
    none, so `first` is at least 1. Arrays are little-endian, so that a worker can keep many.
    """

    request_id: Id
    first: Positive
    likely: Annotated[int, Range(0, MAX_LOGPROBS)]
    logprobs: Annotated[bytes, _VALUES]  # [len] float32
    likely_ids: Annotated[bytes, _LIKELY]  # [len, likely] int32
    likely_logprobs: Annotated[bytes, _LIKELY]  # [len, likely] float32

    def __len__(self) -> int:
        return len(self.logprobs) // 4

    @property
    def num_bytes(self) -> int:
        """The size of the arrays."""
        return len(self.logprobs) + len(self.likely_ids) + len(self.likely_logprobs)

    def part(self, start: int, stop: int) -> PromptLogprobs:
        """The entries of the prompt tokens from index `start` to before `stop`, as far as they are here."""
        begin, end = max(0, start - self.first), max(0, stop - self.first)
        own, each = slice(4 * begin, 4 * end), slice(4 * self.likely * begin, 4 * self.likely * end)
        return PromptLogprobs(
            self.request_id,
            self.first + begin,
            self.likely,
            self.logprobs[own],
            self.likely_ids[each],
            self.likely_logprobs[each],
        )

    def messages(self) -> Iterator[PromptLogprobs]:
        """The entries in messages of bounded size."""
        stop = self.first + len(self)
        for start in range(self.first, stop, TOKENS_PER_MESSAGE):
            yield self.part(start, start + TOKENS_PER_MESSAGE)

    def entries(self) -> Iterator[tuple[int, float, tuple[tuple[int, float], ...]]]:
        """(index in the prompt, log-probability, the likeliest tokens as (id, log-probability)) of each token."""
        ids, values = _numbers("i", self.likely_ids), _numbers("f", self.likely_logprobs)
        for place, logprob in enumerate(_numbers("f", self.logprobs)):
            each = slice(place * self.likely, (place + 1) * self.likely)
            yield self.first + place, logprob, tuple(zip(ids[each], values[each], strict=True))

    def belongs_to(self, request: Request, vocab_size: int) -> bool:
        """Whether these can be log-probabilities of the request's prompt."""
        count = len(self)
        sizes = (len(self.logprobs), len(self.likely_ids), len(self.likely_logprobs))
        if self.likely != request.sampling.prompt_logprobs or self.first + count > len(request.prompt):
            return False
        if sizes != (4 * count, 4 * count * self.likely, 4 * count * self.likely):
            return False
        ids = _numbers("i", self.likely_ids)
        return not ids or (min(ids) >= 0 and max(ids) < vocab_size)


def _numbers(kind: str, data: bytes) -> tuple[Any, ...]:
    """An array of float32 ("f") or int32 ("i") as numbers."""
    return struct.unpack(f"<{len(data) // 4}{kind}", data)
