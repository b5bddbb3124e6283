"""From what a client sends to a checked request: tokenisation, limits, defaults. It is the same for every protocol."""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from baton.config.schema import AccessSection
from baton.gateway.chat_prompt import ChatPrompt
from baton.gateway.chat_template import NO_TEMPLATE
from baton.gateway.encoding import EncodingPool
from baton.gateway.served_model import ServedModel
from baton.protocol.errors import InvalidRequest, PromptTooLong
from baton.protocol.request import Objectives, Request, SamplingParams
from baton.protocol.sampling import with_defaults

MAX_NAME_BYTES = 256


def most_prompt_tokens(access: AccessSection, context_tokens: int) -> int:
    """The longest prompt that could be accepted."""
    return context_tokens if access.max_prompt_tokens == "auto" else min(access.max_prompt_tokens, context_tokens)


def check_prompt(access: AccessSection, num_tokens: int) -> None:
    """Raise `PromptTooLong` for a prompt that is longer than the configuration allows."""
    if access.max_prompt_tokens != "auto" and num_tokens > access.max_prompt_tokens:
        raise PromptTooLong(
            f"The prompt has {num_tokens} tokens; this cluster accepts {access.max_prompt_tokens} "
            "(access.max_prompt_tokens)."
        )


def check_names(request_id: str, tenant: str) -> None:
    """Raise `InvalidRequest` for names that are too long, or would change the look of a log."""
    for name in (request_id, tenant):
        if len(name.encode()) > MAX_NAME_BYTES or not name.isprintable():
            raise InvalidRequest(
                f"request_id and tenant may have at most {MAX_NAME_BYTES} bytes and no control characters."
            )


def check_emitted(emitted: Sequence[int], resume_from: int, max_tokens: int, vocab_size: int) -> None:
    """Raise `InvalidRequest` if the output tokens that a resuming client has are invalid."""
    if not 0 <= resume_from <= max_tokens or len(emitted) not in (0, resume_from):
        raise InvalidRequest(
            f"resume_from is {resume_from} with {len(emitted)} emitted token ids: give the number of received output "
            f"tokens, at most max_tokens, and either all their ids or none."
        )
    if emitted and not (min(emitted) >= 0 and max(emitted) < vocab_size):
        raise InvalidRequest(f"An emitted token id is outside the vocabulary of {vocab_size}.")


@dataclass(eq=False)
class Intake:
    """Makes requests for one served model."""

    model: ServedModel
    access: AccessSection = field(default_factory=AccessSection)
    seeds: random.Random = field(default_factory=random.SystemRandom)
    encoding: EncodingPool = field(init=False)

    def __post_init__(self) -> None:
        self.encoding = EncodingPool(self._encode)

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; a text that is certainly too long is refused without tokenising it.

        Raises `PromptTooLong`, and `Overloaded` if too much text waits.
        """
        num_bytes = len(text.encode())
        if num_bytes > self._limit_bytes:
            tokens = most_prompt_tokens(self.access, self.model.context_tokens)
            raise PromptTooLong(
                f"The prompt has {num_bytes} bytes; the maximum of {tokens} tokens holds at most {self._limit_bytes}."
            )
        return await self.encoding.encode(text, num_bytes, add_special_tokens)

    async def encode_chat(self, chat: ChatPrompt, num_bytes: int) -> list[int]:
        """Token ids of a conversation that the client sent in `num_bytes` bytes.

        The chat template renders it, in the thread that tokenises it. Raises `InvalidRequest` for a model without a
        template and for a conversation that it refuses, `PromptTooLong`, and `Overloaded` if too much text waits.
        """
        if self.model.template is None:
            raise InvalidRequest(NO_TEMPLATE)
        return await self.encoding.encode(chat, num_bytes, add_special_tokens=False)

    def _encode(self, text: str | ChatPrompt, add_special_tokens: bool) -> list[int]:
        if isinstance(text, ChatPrompt):
            assert self.model.template is not None
            text = self.model.template.render(text, self._limit_bytes)
        return self.model.tokenizer.encode(text, add_special_tokens)

    @property
    def _limit_bytes(self) -> int:
        """The most bytes that a prompt which could be accepted has."""
        return most_prompt_tokens(self.access, self.model.context_tokens) * self.model.tokenizer.max_token_bytes

    def request(
        self,
        prompt: Sequence[int],
        sampling: Mapping[str, Any],
        *,
        arrival_s: float,
        deadline_s: float | None = None,
        request_id: str = "",
        tenant: str = "",
        priority: int = 0,
        objectives: Objectives | None = None,
    ) -> Request:
        """A checked request; `sampling` has the given parameters. Raises `InvalidRequest` naming what is wrong.

        `arrival_s` is before tokenisation, which counts towards the time to the first token.
        """
        params = with_defaults(sampling, self.model.sampling_defaults)
        request = Request(
            request_id=request_id or uuid.uuid4().hex,
            prompt=tuple(prompt),
            sampling=params,
            arrival_s=arrival_s,
            deadline_s=deadline_s,
            priority=priority,
            tenant=tenant,
            objectives=objectives or Objectives(),
        )
        check_prompt(self.access, len(prompt))
        request.validate(self.model.config.vocab_size, self.model.context_tokens)
        return replace(request, sampling=self._resolved(params, self.model.context_tokens - len(prompt)))

    def _resolved(self, sampling: SamplingParams, room_tokens: int) -> SamplingParams:
        """With a seed, at most as many tokens as the context has room for, and the ids of special stop strings."""
        max_tokens = min(sampling.max_tokens, room_tokens)
        stop_token_ids = sampling.stop_token_ids
        if sampling.stop:
            # A special token has no text that a stop string could match.
            # A tokenizer may have more tokens than the model.
            special_ids = self.model.tokenizer.special_ids(sampling.stop)
            known = (token_id for token_id in special_ids if token_id < self.model.config.vocab_size)
            stop_token_ids = (*stop_token_ids, *known)
        return replace(
            sampling,
            seed=self.seeds.getrandbits(63) if sampling.seed is None else sampling.seed,
            max_tokens=max_tokens,
            min_tokens=min(sampling.min_tokens, max_tokens),
            stop_token_ids=tuple(dict.fromkeys(stop_token_ids)),
        )
