"""Requests whose answers are known, and clients that check every token and every end."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from baton.gateway.core.commands import (
    ShowTokens,
    StreamEnd,
)
from baton.protocol.errors import NoRouter
from baton.protocol.request import FinishReason, Request, SamplingParams


def request(request_id: str, kind: int, most: int = 8, stop: tuple[str, ...] = (), least: int = 0) -> Request:
    """A request whose tokens are those of its `kind`, which is its prompt."""
    return Request(request_id, (kind, 1), SamplingParams(max_tokens=most, stop=stop, min_tokens=least))


def tokens_of(asked: Request) -> list[int]:
    """All tokens that workers compute for a request: one letter each."""
    kind, most = asked.prompt[0], asked.sampling.max_tokens
    count = most - kind % 3 if most > 3 else most
    return [b"ab."[blake2b(bytes([kind, index]), digest_size=1).digest()[0] % 3] for index in range(count)]


def answer_of(asked: Request) -> tuple[int, str, FinishReason]:
    """Number of tokens, text and end of a request's answer."""
    tokens = tokens_of(asked)
    for count in range(asked.sampling.min_tokens + 1, len(tokens) + 1):
        text = bytes(tokens[:count]).decode()
        met = [len(stop) for stop in asked.sampling.stop if text.endswith(stop)]
        if met:
            return count, text[: count - max(met)], FinishReason.STOP
    reason = FinishReason.LENGTH if len(tokens) == asked.sampling.max_tokens else FinishReason.STOP
    return len(tokens), bytes(tokens).decode(), reason


@dataclass(eq=False)
class Reader:
    """A client: it has `next_index` tokens of its answer."""

    asked: Request
    first_index: int
    next_index: int
    text: str = ""
    end: StreamEnd | None = None

    def show(self, command: ShowTokens) -> None:
        assert self.end is None and command.tokens
        expected = tokens_of(self.asked)
        for token in command.tokens:
            assert token.index == self.next_index and token.token_id == expected[token.index]
            self.next_index += 1
            self.text += token.text

    def finish(self, end: StreamEnd) -> None:
        assert self.end is None
        self.end = end
        if end.error is not None:  # Nothing else may reach a client here, and only one whose answer has not begun
            assert isinstance(end.error, NoRouter) and self.next_index == self.first_index
        else:
            count, text, reason = answer_of(self.asked)
            assert (end.output_tokens, end.reason, self.next_index) == (count, reason, count), (
                self,
                count,
                text,
                reason,
            )
            assert text.endswith(self.text + end.trailing_text)
