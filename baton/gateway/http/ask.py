"""What an HTTP client asks for: the checked content of a body, between its JSON and the requests made of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from baton.gateway.chat_prompt import ChatPrompt
from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.detokenizer import Vocabulary
from baton.gateway.core.stream import TextToken
from baton.protocol.request import Objectives

TokenLogprobs = tuple[float | None, tuple[tuple[int, float], ...]]
"""A token's log-probability (None: the first of a prompt), and (token id, log-probability) of the likeliest ones."""


@dataclass(frozen=True, slots=True)
class HttpModel:
    """The facts of the served model that bodies depend on."""

    name: str
    context_tokens: int
    vocab_size: int
    created_s: int  # Unix time of the gateway's start
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)  # Those of generation_config.json


@dataclass(frozen=True, slots=True)
class Ask:
    """A body of /v1/completions or /v1/chat/completions, with the defaults of HTTP.

    It makes `num_sequences` sequences, numbered from 0: those of the first prompt, then those of the next.
    """

    kind: Literal["completion", "chat"]
    model: str  # The served model's name
    prompts: tuple[str | tuple[int, ...], ...]  # Texts or token ids; of a chat none
    chat: ChatPrompt | None  # A chat's only prompt
    sampling: dict[str, Any]  # Fields of `SamplingParams`, for `Intake.request`; `max_tokens` may exceed the context
    n: int = 1
    best_of: int = 1  # Sequences to generate per prompt, at least `n`
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    echo: bool = False
    prompt_only: bool = False  # `echo` with `max_tokens` 0: one token is generated and not shown
    logprobs: int | None = None  # Alternatives to show per output token; None: no log-probabilities
    prompt_logprobs: int | None = None  # As `logprobs`, for the prompt
    add_special_tokens: bool = True  # When texts are tokenised
    return_token_ids: bool = False
    tokens_as_ids: bool = False  # With log-probabilities a token is named `token_id:7`, not by its text
    priority: int = 0
    objectives: Objectives = field(default_factory=Objectives)
    ignored: tuple[str, ...] = ()  # Names of unknown fields

    @property
    def operation(self) -> str:
        """OpenTelemetry's name of it."""
        return "chat" if self.kind == "chat" else "text_completion"

    @property
    def num_prompts(self) -> int:
        return 1 if self.chat is not None else len(self.prompts)

    @property
    def num_sequences(self) -> int:
        """Sequences to generate."""
        return self.num_prompts * self.best_of

    def prompt_of(self, sequence: int) -> tuple[int, int]:
        """The index of a sequence's prompt, and the sequence's own index among those of that prompt."""
        return divmod(sequence, self.best_of)


class Words(Vocabulary, Protocol):
    """The served model's tokens."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, perhaps part of a character; those of a special token's name."""


class Renderer(Protocol):
    """Writes one answer: as server-sent events, or as one body."""

    def prompt_logprobs(self, prompt: int, logprobs: Sequence[TokenLogprobs]) -> None:
        """Add the log-probabilities of a prompt's tokens, if they are asked for, before its first `write`."""

    def write(self, sequence: int, tokens: list[TextToken], end: StreamEnd | None) -> bytes:
        """What can be sent after these tokens of a sequence and perhaps its end (not an error); may be empty."""

    def close(self) -> bytes:
        """What is sent after the ends of all sequences: the last events, or the whole body."""
