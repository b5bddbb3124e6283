"""Text from tokens as they come: never half a character, never half a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Decode = Callable[[Sequence[int]], str]
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_PENDING_TOKENS = 8  # a character has at most 4 bytes; longer runs of invalid bytes are text as they are


@dataclass(slots=True)
class Detokenizer:
    """Turns token ids into text increments whose concatenation is the decoded whole.

    A token's text depends on the ones before it (leading spaces, bytes of one character), so a window of recent
    tokens is decoded twice, with and without the new ones, and the difference is the new text.
    """

    decode: Decode
    _window: list[int] = field(default_factory=list)  # [settled tokens | tokens whose text is not out yet]
    _settled: int = 0

    def push(self, token_id: int) -> str:
        """The text that became certain with this token."""
        self._window.append(token_id)
        before = self.decode(self._window[: self._settled])
        text = self.decode(self._window)
        pending = len(self._window) - self._settled
        if text.endswith(REPLACEMENT) and pending < MAX_PENDING_TOKENS:
            return ""
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        return text[len(before) :]

    def flush(self) -> str:
        """What is left when the sequence ends in the middle of a character."""
        before = self.decode(self._window[: self._settled])
        text = self.decode(self._window)
        self._window, self._settled = [], 0
        return text[len(before) :]


@dataclass(slots=True)
class StopStrings:
    """Finds the first stop string in streamed text, holding back what may be the beginning of one."""

    stop: tuple[str, ...]
    _held: str = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was met (which itself is not shown)."""
        self._held += text
        found = [position for stop in self.stop if (position := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max((_overlap(self._held, stop) for stop in self.stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """What was held back, when the sequence ended without the rest of the stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
