"""Bodies of /v1/completions. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton.gateway.http.ask import Ask, HttpModel
from baton.gateway.http.common_fields import (
    MAX_SEQUENCES,
    REFUSED,
    check_known,
    most,
    read_counts,
    read_model,
    read_objectives,
    read_prompt_logprobs,
    read_sampling,
    read_stream,
)
from baton.gateway.http.parameters import Fields, parse_object
from baton.http.errors import InvalidField
from baton.protocol.request import MAX_LOGPROBS

MAX_TOKENS = 16  # OpenAI's default
_REFUSED = {**REFUSED, "suffix": ("",)}


def parse_completion(body: bytes, model: HttpModel, headers: Mapping[str, str] | None = None) -> Ask:
    """The checked content of a body; `headers` have lower case names.

    Raises `InvalidRequest` naming the field, and `ModelNotFound`.
    """
    fields = Fields(parse_object(body))
    name = read_model(fields, model)
    check_known(fields, _REFUSED)
    prompts = _prompts(fields, model.vocab_size)
    stream, include_usage, continuous_usage = read_stream(fields)
    n, best_of = read_counts(fields, len(prompts), stream)
    logprobs = fields.whole("logprobs", 0, MAX_LOGPROBS)
    echo = fields.flag("echo", False)
    max_tokens = _max_tokens(fields, echo)
    sampled_logprobs = 0 if best_of > n and logprobs is None else logprobs  # The best are found by them
    prompt_logprobs = read_prompt_logprobs(fields, stream)
    decided = {
        "max_tokens": max(1, max_tokens),
        "logprobs": sampled_logprobs,
        "prompt_logprobs": most(prompt_logprobs, logprobs if echo else None),
    }
    sampling = read_sampling(fields, model, decided)
    priority, objectives = read_objectives(fields, headers or {})
    return Ask(
        kind="completion",
        model=name,
        prompts=prompts,
        chat=None,
        sampling=sampling,
        n=n,
        best_of=best_of,
        stream=stream,
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        echo=echo,
        prompt_only=max_tokens == 0,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        add_special_tokens=fields.flag("add_special_tokens", True),
        return_token_ids=fields.flag("return_token_ids", False),
        tokens_as_ids=fields.flag("return_tokens_as_token_ids", False),
        priority=priority,
        objectives=objectives,
        ignored=fields.unread,
    )


def _max_tokens(fields: Fields, echo: bool) -> int:
    """`max_tokens`; 0 only with `echo`."""
    value = fields.whole("max_tokens", 0 if echo else 1, 2**31 - 1)
    return MAX_TOKENS if value is None else value


def _prompts(fields: Fields, vocab_size: int) -> tuple[str | tuple[int, ...], ...]:
    value = fields.get("prompt")
    if type(value) is str:
        return (value,)
    if type(value) is not list or not value:
        raise fields.error("prompt", "a text, a list of texts, a list of token ids or a list of such lists")
    if type(value[0]) is int:
        return (_token_ids(value, "prompt", vocab_size),)
    if len(value) > MAX_SEQUENCES:
        raise InvalidField(f"prompt has {len(value)} items; at most {MAX_SEQUENCES} are accepted.", "prompt")
    return tuple(
        item if type(item) is str else _token_ids(item, f"prompt[{at}]", vocab_size) for at, item in enumerate(value)
    )


def _token_ids(value: Any, name: str, vocab_size: int) -> tuple[int, ...]:
    if type(value) is not list or not value or set(map(type, value)) != {int}:
        raise InvalidField(f"{name} must be a text or a list of token ids.", name)
    wrong = next((token_id for token_id in (min(value), max(value)) if not 0 <= token_id < vocab_size), None)
    if wrong is not None:
        raise InvalidField(f"{name} has the token id {wrong}, outside the vocabulary of {vocab_size}.", name)
    return tuple(value)
