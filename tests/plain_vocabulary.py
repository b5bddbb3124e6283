"""A vocabulary computed by one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlainVocabulary:
    """Every token has text, and no token is a byte."""

    text: Callable[[Sequence[int]], str]
    byte_ids: Sequence[int] = ()

    def has_text(self, token_id: int) -> bool:
        return True

    def byte_of(self, token_id: int) -> int | None:
        return None

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.text(token_ids)


LETTERS = PlainVocabulary(lambda token_ids: "".join(map(chr, token_ids)))
BYTES = PlainVocabulary(lambda token_ids: bytes(token_ids).decode(errors="replace"))
