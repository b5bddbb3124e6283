"""Tokens and answers as a client receives them, and the message of its request."""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

from baton.client.chat import Chat, conversation_message
from baton.protocol import conversion
from baton.protocol.handoff import HandoffReport
from baton.protocol.request import Objectives, SamplingParams
from baton.protocol.v1 import inference_pb2

Prompt: TypeAlias = str | list[int] | Chat


@dataclass(frozen=True, slots=True)
class Token:
    """One output token. `text` is the text that it completes; it may be empty within a multi-byte character."""

    index: int
    id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptToken:
    """One prompt token with its log-probability, which the first one lacks."""

    index: int
    id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished generation with its timings, usage and route. The gateway measured the times, in seconds."""

    request_id: str
    text: str
    tokens: tuple[Token, ...]
    finish_reason: str  # "stop" or "length"
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    queue_s: float
    ttft_s: float
    tpot_s: float | None
    total_s: float
    prefill_worker: str
    decode_worker: str
    attempts: int
    migrations: int
    handoff: HandoffReport | None
    prompt: tuple[PromptToken, ...] = ()  # If `prompt_logprobs` were requested

    @property
    def token_ids(self) -> list[int]:
        """Ids of the output tokens."""
        return [token.id for token in self.tokens]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def make_request(
    prompt: Prompt,
    sampling: Mapping[str, Any],
    *,
    request_id: str = "",
    priority: int = 0,
    tenant: str = "",
    objectives: Objectives | None = None,
    add_special_tokens: bool = True,
) -> inference_pb2.GenerateRequest:
    """The message of a request with a text, token ids or a conversation; the model's defaults complete `sampling`.

    Id and seed are chosen here if not given, so that a stream can be resumed.
    """
    request_id = request_id or uuid.uuid4().hex
    if sampling.get("seed") is None:
        sampling = {**sampling, "seed": random.getrandbits(63)}
    message = inference_pb2.GenerateRequest(request_id=request_id, priority=priority, tenant=tenant)
    if isinstance(prompt, str):
        message.text = prompt
        message.add_special_tokens = add_special_tokens
    elif isinstance(prompt, Chat):
        message.conversation.CopyFrom(conversation_message(prompt))
    else:
        message.token_ids.ids.extend(prompt)
    message.sampling.CopyFrom(conversion.partial_message(SamplingParams, sampling))  # type: ignore[arg-type]
    if objectives is not None:
        message.objectives.CopyFrom(conversion.to_message(objectives))  # type: ignore[arg-type]
    return message


def read_tokens(response: inference_pb2.GenerateResponse) -> list[Token]:
    """The tokens of one message of a stream."""
    return [
        Token(
            token.index,
            token.id,
            token.text,
            token.logprob if token.HasField("logprob") else None,
            tuple((top.id, top.logprob) for top in token.top_logprobs),
        )
        for token in response.tokens
    ]


def read_prompt(response: inference_pb2.GenerateResponse) -> list[PromptToken]:
    """The prompt tokens of one message of a stream."""
    return [
        PromptToken(
            token.index,
            token.id,
            token.logprob if token.HasField("logprob") else None,
            tuple((top.id, top.logprob) for top in token.top_logprobs),
        )
        for token in response.prompt_tokens
    ]


def read_answer(tokens: list[Token], prompt: list[PromptToken], finish: inference_pb2.Finish) -> Answer:
    """The answer of a stream with these tokens and this last message."""
    timings, usage, route = finish.timings, finish.usage, finish.route
    return Answer(
        request_id=finish.request_id,
        text="".join(token.text for token in tokens) + finish.trailing_text,
        tokens=tuple(tokens),
        finish_reason=conversion.finish_reason(finish.reason).value,
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        queue_s=timings.queue_s,
        ttft_s=timings.ttft_s,
        tpot_s=timings.tpot_s if timings.HasField("tpot_s") else None,
        total_s=timings.total_s,
        prefill_worker=route.prefill_worker,
        decode_worker=route.decode_worker,
        attempts=route.attempts,
        migrations=route.migrations,
        handoff=conversion.from_message(HandoffReport, route.handoff) if route.HasField("handoff") else None,
        prompt=tuple(prompt),
    )


def given_sampling(sampling: SamplingParams | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields that a caller sets: all of `sampling`, or the keyword options that are not None.

    The served model has defaults for the others: see `baton/protocol/sampling.py`. Raises `TypeError` for an unknown
    option, and for options beside a `sampling`.
    """
    if sampling is not None:
        if options:
            raise TypeError(f"Give either sampling or {', '.join(options)}, not both.")
        return {field.name: getattr(sampling, field.name) for field in fields(SamplingParams)}
    values = {key: _as_tuple(value) for key, value in options.items()}
    given: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
    SamplingParams(**given)  # Raises TypeError for an unknown option
    return given


def _as_tuple(value: Any) -> Any:
    """A list as a tuple, a mapping as a tuple of its ascending items; other values as they are."""
    if isinstance(value, Mapping):
        return tuple(sorted(value.items()))
    return tuple(value) if isinstance(value, list) else value
