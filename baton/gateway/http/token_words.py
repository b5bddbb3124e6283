"""Names and log-probabilities of tokens, as OpenAI writes them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from baton.gateway.http.ask import TokenLogprobs, Words

LOWEST = -9999.0  # In place of minus infinity, which JSON does not have


def finite(logprob: float | None) -> float:
    """A log-probability that JSON can have."""
    return logprob if logprob is not None and logprob > LOWEST else LOWEST


@dataclass(slots=True, eq=False)
class TokenWords:
    """Names of tokens; those met before are remembered."""

    words: Words
    as_ids: bool = False
    incomplete_prefix: str = ""  # Before the bytes of a token that is no text by itself
    _known: dict[int, tuple[str, list[int]]] = field(default_factory=dict)

    def name(self, token_id: int) -> str:
        """A token's text, or its bytes as `\\xe2\\x82` where it has but a part of a character."""
        return self.look_up(token_id)[0]

    def look_up(self, token_id: int) -> tuple[str, list[int]]:
        """A token's name and bytes."""
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._read(token_id)
        return found

    def _read(self, token_id: int) -> tuple[str, list[int]]:
        data = self.words.token_bytes(token_id)
        if self.as_ids:
            return f"token_id:{token_id}", list(data)
        try:
            return data.decode(), list(data)
        except UnicodeDecodeError:
            return self.incomplete_prefix + "".join(f"\\x{byte:02x}" for byte in data), list(data)


def chat_logprobs(words: TokenWords, tokens: Iterable[tuple[int, TokenLogprobs]]) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""

    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        name, data = words.look_up(token_id)
        return {"token": name, "logprob": finite(logprob), "bytes": data}

    content = [
        {**entry(token_id, logprob), "top_logprobs": [entry(*other) for other in top]}
        for token_id, (logprob, top) in tokens
    ]
    return {"content": content, "refusal": None}


def top_by_name(words: TokenWords, token_id: int, logprobs: TokenLogprobs, shown: int) -> dict[str, float] | None:
    """The `shown` likeliest tokens of a completion's position and the token itself; None without log-probabilities.

    Of tokens with the same name the likeliest counts.
    """
    logprob, top = logprobs
    if logprob is None:
        return None
    named: dict[str, float] = {}
    for other, value in (*top[:shown], (token_id, logprob)):
        named.setdefault(words.name(other), finite(value))
    return named


def prompt_logprobs(
    words: TokenWords, token_ids: Iterable[int], logprobs: Iterable[TokenLogprobs], shown: int
) -> list[dict[str, Any] | None]:
    """`prompt_logprobs` as vLLM writes them: by token id, with the rank where it is known."""
    entries: list[dict[str, Any] | None] = []
    for token_id, (logprob, top) in zip(token_ids, logprobs, strict=False):
        if logprob is None:
            entries.append(None)
            continue
        ranked = {other: (value, rank) for rank, (other, value) in enumerate(top[:shown], 1)}
        ranked.setdefault(token_id, (logprob, None))  # type: ignore[arg-type]
        entries.append(
            {
                str(other): {"logprob": finite(value), "rank": rank, "decoded_token": words.name(other)}
                for other, (value, rank) in ranked.items()
            }
        )
    return entries
