"""Answers as one body. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.stream import TextToken
from baton.gateway.http.answer import Answer, completion_logprobs, named_texts
from baton.gateway.http.ask import TokenLogprobs
from baton.gateway.http.token_words import chat_logprobs, finite


@dataclass(slots=True, eq=False)
class _Sequence:
    tokens: list[TextToken] = field(default_factory=list)
    end: StreamEnd | None = None

    @property
    def text(self) -> str:
        return "".join([token.text for token in self.tokens]) + (self.end.trailing_text if self.end is not None else "")

    @property
    def reason(self) -> str | None:
        return self.end.reason.value if self.end is not None and self.end.reason is not None else None

    @property
    def mean_logprob(self) -> float:
        return sum(finite(token.logprob) for token in self.tokens) / max(1, len(self.tokens))


@dataclass(slots=True, eq=False)
class WholeAnswer:
    """Collects an answer; of `best_of` sequences it shows the `n` with the highest mean log-probability."""

    answer: Answer
    _sequences: list[_Sequence] = field(init=False)

    def __post_init__(self) -> None:
        self._sequences = [_Sequence() for _ in range(self.answer.ask.num_sequences)]

    def prompt_logprobs(self, prompt: int, logprobs: Sequence[TokenLogprobs]) -> None:
        """As `Renderer.prompt_logprobs`."""
        self.answer.prompt_logprobs[prompt] = logprobs

    def write(self, sequence: int, tokens: list[TextToken], end: StreamEnd | None) -> bytes:
        """Nothing can be sent yet."""
        self.answer.count(sequence, tokens, end)
        self._sequences[sequence].tokens += tokens
        self._sequences[sequence].end = end
        return b""

    def close(self) -> bytes:
        """The body."""
        answer = self.answer
        completion = answer.ask.kind == "completion"
        body = answer.head("text_completion" if completion else "chat.completion")
        choice = self._completion_choice if completion else self._chat_choice
        body["choices"] = [
            choice(prompt * answer.ask.n + index, prompt, sequence)
            for prompt in range(answer.ask.num_prompts)
            for index, sequence in enumerate(self._best(prompt))
        ]
        body["usage"] = answer.usage(ended=True)
        if not completion:
            body |= self._of_prompt(0)
        return orjson.dumps(body)

    def _best(self, prompt: int) -> list[_Sequence]:
        n, best_of = self.answer.ask.n, self.answer.ask.best_of
        sequences = self._sequences[prompt * best_of : (prompt + 1) * best_of]
        if best_of > n:
            sequences.sort(key=lambda sequence: -sequence.mean_logprob)
        return sequences[:n]

    def _of_prompt(self, prompt: int) -> dict[str, Any]:
        """Members about a prompt: of a completion's choice, or of a chat's body."""
        members: dict[str, Any] = {}
        logprobs = self.answer.prompt_logprobs_of(prompt)
        if logprobs is not None:
            members["prompt_logprobs"] = logprobs
        if self.answer.ask.return_token_ids:
            members["prompt_token_ids"] = list(self.answer.prompts[prompt])
        return members

    def _token_ids(self, sequence: _Sequence) -> dict[str, Any]:
        if not self.answer.ask.return_token_ids:
            return {}
        return {"token_ids": [token.token_id for token in sequence.tokens]}

    def _completion_choice(self, index: int, prompt: int, sequence: _Sequence) -> dict[str, Any]:
        answer, ask = self.answer, self.answer.ask
        reason = sequence.reason
        if ask.prompt_only:
            sequence = _Sequence()
        text, named = sequence.text, named_texts(sequence.tokens)
        if ask.echo:
            text = answer.echo_text(prompt) + text
            named = answer.echo_tokens(prompt) + named if ask.logprobs is not None else named
        logprobs = None if ask.logprobs is None else completion_logprobs(answer.names, named, 0, ask.logprobs)
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason,
            **self._of_prompt(prompt),
            **self._token_ids(sequence),
        }

    def _chat_choice(self, index: int, prompt: int, sequence: _Sequence) -> dict[str, Any]:
        shown = self.answer.ask.logprobs
        pairs = [(token.token_id, (token.logprob, token.top_logprobs)) for token in sequence.tokens]
        return {
            "index": index,
            "message": {"role": "assistant", "content": sequence.text, "refusal": None},
            "logprobs": None if shown is None else chat_logprobs(self.answer.names, pairs),
            "finish_reason": sequence.reason,
            **self._token_ids(sequence),
        }
