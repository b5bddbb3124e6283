"""Log-probabilities that a worker can send again: those of output tokens and of prompts, if requested. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.protocol.gateway_messages import TokenOutput
from baton.protocol.prompt_logprobs import PromptLogprobs

OUTPUT_BYTES, LIKELY_BYTES = 200, 120  # Of a token with its log-probability, and of each likely one beside it


@dataclass(slots=True, eq=False)
class _Kept:
    tokens: list[TokenOutput] = field(default_factory=list)
    prompt: list[PromptLogprobs] = field(default_factory=list)  # From index 1 on, without a gap
    num_bytes: int = 0


@dataclass(eq=False)
class KeptLogprobs:
    """By request id. Beyond `most_bytes`, those of the oldest requests are dropped."""

    most_bytes: int
    num_bytes: int = 0  # An estimate
    _kept: OrderedDict[str, _Kept] = field(default_factory=OrderedDict)  # Oldest first

    def add_token(self, output: TokenOutput) -> None:
        """The newest output token of a request."""
        kept = self._kept.setdefault(output.request_id, _Kept())
        kept.tokens.append(output)
        self._grow(kept, OUTPUT_BYTES + LIKELY_BYTES * len(output.top_logprobs))

    def add_prompt(self, part: PromptLogprobs) -> None:
        """The next part of a prompt; the first part replaces those of an earlier computation."""
        if part.first == 1:
            self.forget(part.request_id)
        kept = self._kept.setdefault(part.request_id, _Kept())
        if part.first == 1 + sum(map(len, kept.prompt)):  # Else earlier parts were dropped
            kept.prompt.append(part)
            self._grow(kept, part.num_bytes)

    def tokens(self, request_id: str) -> Sequence[TokenOutput]:
        """The output tokens that are held."""
        kept = self._kept.get(request_id)
        return kept.tokens if kept is not None else ()

    def prompt(self, request_id: str) -> list[PromptLogprobs]:
        """The parts of the prompt that are held, from its beginning."""
        kept = self._kept.get(request_id)
        return list(kept.prompt) if kept is not None else []

    def forget(self, request_id: str) -> None:
        """Drop what is held of a request."""
        kept = self._kept.pop(request_id, None)
        if kept is not None:
            self.num_bytes -= kept.num_bytes

    def _grow(self, kept: _Kept, num_bytes: int) -> None:
        kept.num_bytes += num_bytes
        self.num_bytes += num_bytes
        while self.num_bytes > self.most_bytes:
            self.forget(next(iter(self._kept)))
