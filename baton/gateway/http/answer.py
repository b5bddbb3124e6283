"""What the stream and the whole body of an answer share: its prompts, its tokens' names, its usage. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.detokenizer import Detokenizer
from baton.gateway.core.stream import TextToken
from baton.gateway.http.ask import Ask, TokenLogprobs, Words
from baton.gateway.http.token_words import TokenWords, finite, prompt_logprobs, top_by_name

NamedText = tuple[int, str, TokenLogprobs]
"""A token's id, the text that it adds, and its log-probabilities."""


@dataclass(slots=True, eq=False)
class Answer:
    """One answer to a body, and the counts of its tokens so far."""

    ask: Ask
    answer_id: str
    created_s: int  # Unix time
    prompts: Sequence[Sequence[int]]  # Token ids
    words: Words
    names: TokenWords = field(init=False)
    prompt_logprobs: dict[int, Sequence[TokenLogprobs]] = field(default_factory=dict)  # By prompt
    output_tokens: int = 0
    _cached: dict[int, int] = field(default_factory=dict)  # Tokens by prompt

    def __post_init__(self) -> None:
        prefix = "bytes:" if self.ask.kind == "completion" else ""
        self.names = TokenWords(self.words, self.ask.tokens_as_ids, prefix)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; each counts once, however many sequences it has."""
        return sum(map(len, self.prompts))

    def head(self, object_name: str) -> dict[str, Any]:
        """The members that all of an answer's objects begin with."""
        return {"id": self.answer_id, "object": object_name, "created": self.created_s, "model": self.ask.model}

    def count(self, sequence: int, tokens: list[TextToken], end: StreamEnd | None) -> None:
        """Add tokens of a sequence, and the cached part of its prompt at its end."""
        if not self.ask.prompt_only:
            self.output_tokens += len(tokens)
        if end is not None:
            prompt = self.ask.prompt_of(sequence)[0]
            # The sequence with the fewest cached tokens is the one that computed the prompt.
            self._cached[prompt] = min(self._cached.get(prompt, end.cached_tokens), end.cached_tokens)

    def usage(self, ended: bool) -> dict[str, Any]:
        """The tokens so far; what was cached is known once all sequences have ended."""
        prompt, output = self.prompt_tokens, self.output_tokens
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
        }
        if ended:
            usage["prompt_tokens_details"] = {"cached_tokens": sum(self._cached.values())}
        return usage

    def echo_text(self, prompt: int) -> str:
        """A prompt's text: the client's own, or that of its token ids."""
        given = self.ask.prompts[prompt]
        return given if isinstance(given, str) else self.words.decode(given)

    def echo_tokens(self, prompt: int) -> list[NamedText]:
        """A prompt's tokens with the text that each adds."""
        detokenizer = Detokenizer(self.words)
        token_ids, logprobs = self.prompts[prompt], self.prompt_logprobs.get(prompt, ())
        known = [*logprobs, *((None, ()) for _ in range(len(token_ids) - len(logprobs)))]
        return [
            (token_id, detokenizer.push(token_id), known_logprobs)
            for token_id, known_logprobs in zip(token_ids, known, strict=True)
        ]

    def prompt_logprobs_of(self, prompt: int) -> list[dict[str, Any] | None] | None:
        """The member `prompt_logprobs` for a prompt; None if it is not asked for."""
        shown, logprobs = self.ask.prompt_logprobs, self.prompt_logprobs.get(prompt)
        if shown is None or logprobs is None:
            return None
        return prompt_logprobs(self.names, self.prompts[prompt], logprobs, shown)


def named_texts(tokens: Iterable[TextToken]) -> list[NamedText]:
    """Output tokens with their texts and log-probabilities."""
    return [(token.token_id, token.text, (token.logprob, token.top_logprobs)) for token in tokens]


def completion_logprobs(names: TokenWords, tokens: list[NamedText], offset: int, shown: int) -> dict[str, Any]:
    """`logprobs` of a completion's choice; `offset` is where the first token's text begins, in characters."""
    offsets: list[int] = []
    for _, text, _ in tokens:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": [names.name(token_id) for token_id, _, _ in tokens],
        "token_logprobs": [None if lp[0] is None else finite(lp[0]) for _, _, lp in tokens],
        "top_logprobs": [top_by_name(names, token_id, lp, shown) for token_id, _, lp in tokens],
        "text_offset": offsets,
    }
