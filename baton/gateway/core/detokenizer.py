"""Text from tokens as they come: never half a character, never half a stop string.

**What the text of an output is.** The text of prompt and output, without the beginning that it shares with the text of
the prompt alone. So the first token keeps its leading space, which sentencepiece's decoders take from the first token
of a text. A prompt may end in the middle of a character: the output that completes it has that whole character; one
that does not has nothing of it, not even the replacement character that stands at the end of the prompt's own text.

The text of some tokens is what the tokenizer decodes, but for one case, in which that could not be streamed. Where
byte tokens spell characters (`<0xE2>`), the library turns every byte of a run into a replacement character when one
of them is wrong, also those of characters that are long out. Here only the wrong bytes become replacement characters,
as sentencepiece itself has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
WINDOW_TOKENS = 6  # decoded at once: a larger window costs more per token, a smaller one is rebuilt more often
CONTEXT_TOKENS = 4  # with text: enough for every byte of an unfinished character, and for what later text depends on


class Vocabulary(Protocol):
    """How token ids become text."""

    @property
    def byte_ids(self) -> Sequence[int]:
        """The 256 tokens that stand for one byte each, where rare characters are spelt so; else empty."""

    def has_text(self, token_id: int) -> bool:
        """False for special tokens and for ids without a token: decoding leaves them out."""

    def byte_of(self, token_id: int) -> int | None:
        """The byte that one of `byte_ids` stands for."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens. Incomplete characters become replacement characters."""


@dataclass(slots=True)
class Detokenizer:
    """Turns token ids into text increments whose concatenation is the text of the output.

    A token's text depends on the ones before it (leading spaces, bytes of one character), so a window of recent
    tokens is decoded with the new one, and what was not there before is the new text. The window holds tokens with
    text only: after special ones alone, a tokenizer takes the next token for the first of a text.
    """

    vocabulary: Vocabulary
    _window: list[int] = field(default_factory=list)
    _shown: int = 0  # characters of the window's text that were emitted
    _bytes: bytearray = field(default_factory=bytearray)  # byte tokens of an unfinished character, not in the window
    _prompts: int = 0  # replacement characters at the end of the prompt's text, which are not the output's

    def read_prompt(self, prompt: Sequence[int]) -> None:
        """Start where the prompt's text ends; of a long prompt only the last tokens matter."""
        tail: list[int] = []
        for token_id in reversed(prompt):
            if self.vocabulary.has_text(token_id):
                tail.append(token_id)
                if len(tail) == CONTEXT_TOKENS:
                    break
        for token_id in reversed(tail):
            self.push(token_id)
        self._prompts = len(self._unfinished())

    def push(self, token_id: int) -> str:
        """The text that became certain with this token."""
        vocabulary = self.vocabulary
        if not vocabulary.has_text(token_id):
            return ""
        byte = vocabulary.byte_of(token_id)
        if byte is not None:
            return self._of_output(self._spell(byte))
        text = self._give_bytes_up() if self._bytes else ""
        return self._of_output(text + self._append((token_id,)))

    def flush(self) -> str:
        """The remaining text when the sequence ends in the middle of a character."""
        text = self._of_output(self._unfinished())
        self._window, self._shown, self._bytes = [], 0, bytearray()
        return text

    def _append(self, token_ids: Sequence[int]) -> str:
        """The certain text of the window with one or more tokens: several are the bytes of one character."""
        window = self._window
        window += token_ids
        text = self.vocabulary.decode(window)
        # The tokenizer turns bytes of an unfinished character into one replacement character, the text's last.
        unfinished = text.endswith(REPLACEMENT) and not self.vocabulary.byte_ids
        certain = text[self._shown : -1] if unfinished else text[self._shown :]
        if len(window) <= WINDOW_TOKENS:
            self._shown = len(text) - unfinished
        else:
            del window[: -(CONTEXT_TOKENS if unfinished else len(token_ids))]
            self._shown = len(self.vocabulary.decode(window)) - unfinished
        return certain

    def _spell(self, byte: int) -> str:
        """The text that a byte token completes; bytes that cannot begin a character are replaced one by one."""
        self._bytes.append(byte)
        text = ""
        while self._bytes:
            try:
                self._bytes.decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    break
                del self._bytes[0]
                text += self._append(self._spelt(REPLACEMENT.encode()))
            else:
                text += self._append(self._spelt(self._bytes))
                self._bytes.clear()
        return text

    def _give_bytes_up(self) -> str:
        """Replacement text for an unfinished character that was not completed."""
        wrong, self._bytes = len(self._bytes), bytearray()
        return "".join(self._append(self._spelt(REPLACEMENT.encode())) for _ in range(wrong))

    def _spelt(self, data: bytes | bytearray) -> list[int]:
        return [self.vocabulary.byte_ids[byte] for byte in data]

    def _unfinished(self) -> str:
        """The text of an unfinished character, as it is now."""
        if self._bytes:
            return REPLACEMENT * len(self._bytes)
        return self.vocabulary.decode(self._window)[self._shown :] if self._window else ""

    def _of_output(self, text: str) -> str:
        """Without the prompt's replacement characters, if they have not become a character with the output."""
        if not (text and self._prompts):
            return text
        while self._prompts and text.startswith(REPLACEMENT):
            text, self._prompts = text[1:], self._prompts - 1
        self._prompts = 0
        return text


@dataclass(slots=True)
class StopStrings:
    """Finds the first stop string in streamed text, holding back what may be the beginning of one."""

    stop: tuple[str, ...]
    include: bool = False  # A stop string that was met is shown
    _held: str = ""

    def push(self, text: str, may_end: bool = True) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was met; nothing after it is shown.

        Of several, the one that begins first counts, and of these the shortest. Only one that ends in `text` counts,
        and none if the sequence may not end here: those are text like any other. A later one may begin there.
        """
        before, self._held = len(self._held), self._held + text
        if may_end:
            starts = ((stop, max(0, before - len(stop) + 1)) for stop in self.stop)
            found = [(begin, len(stop)) for stop, start in starts if (begin := self._held.find(stop, start)) >= 0]
            if found:
                begin, length = min(found)
                shown, self._held = self._held[: begin + length if self.include else begin], ""
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
