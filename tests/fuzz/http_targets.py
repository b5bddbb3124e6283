"""Parsers of HTTP bodies."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import orjson

from baton.gateway.http.answers import renderer
from baton.gateway.http.ask import Ask
from baton.gateway.http.chat import parse_chat
from baton.gateway.http.common_fields import REFUSED
from baton.gateway.http.completions import parse_completion
from baton.gateway.http.models import parse_detokenize, parse_tokenize
from baton.http.errors import error_response
from baton.protocol.errors import BatonError
from baton.protocol.sampling import with_defaults
from tests.fuzz.inputs import json_bytes, mutated_bytes, mutated_json
from tests.fuzz.target import Target
from tests.gateway.http.answering import WORDS, output_of, prompts_of
from tests.gateway.http.bodies import MODEL

COMMON: dict[str, Any] = {
    "model": "tiny",
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "seed": 1,
    "min_tokens": 1,
    "stop": ["x"],
    "n": 2,
    "stop_token_ids": [1, 2],
    "ignore_eos": False,
    "stream": True,
    "priority": 1,
    "user": "u",
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "baton": {"ttft_ms": 100, "tpot_ms": 20, "priority": 1},
    "return_token_ids": True,
    "logit_bias": {"5": 1.5},
    "prompt_logprobs": None,
}
COMPLETION = {**COMMON, "prompt": ["Hi", [5, 6]], "max_tokens": 5, "echo": True, "best_of": 2, "logprobs": 2}
CHAT = {
    **COMMON,
    "messages": [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "x"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "content": "1", "tool_call_id": "c"},
    ],
    "max_completion_tokens": 5,
    "logprobs": True,
    "top_logprobs": 2,
    "chat_template_kwargs": {"a": [1]},
}
TOKENIZE = {"model": "tiny", "prompt": "Hi", "add_special_tokens": True, "return_token_strs": True}
DETOKENIZE = {"model": "tiny", "tokens": [1, 2, 3]}


def _body(valid: dict[str, Any]) -> Callable[[random.Random], bytes]:
    def make(rng: random.Random) -> bytes:
        body = {name: value for name, value in valid.items() if rng.random() < 0.8}
        if rng.random() < 0.1:
            body[rng.choice(sorted(REFUSED))] = rng.choice((None, True, [], {"type": "text"}))
        if rng.random() < 0.8:
            body = mutated_json(rng, body)
        data = json_bytes(body)
        return mutated_bytes(rng, data) if rng.random() < 0.2 else data

    return make


def _feed(parse: Callable[[bytes], Ask]) -> Callable[[bytes], None]:
    """What is read can be served and answered, and what is refused can be sent."""

    def feed(data: bytes) -> None:
        ask = _refused_as_json(parse, data)
        with_defaults(ask.sampling, {}).validate(MODEL.vocab_size)
        prompts = prompts_of(ask)
        written = renderer(ask, "id", 7, prompts, WORDS)
        for sequence in range(ask.num_sequences):
            sent = written.write(sequence, *output_of(ask, [5], [70, 200, 5]))
            for event in sent.split(b"\n\n")[:-1]:
                orjson.loads(event.removeprefix(b"data: "))
        last = written.close()
        assert last.endswith(b"data: [DONE]\n\n") if ask.stream else orjson.loads(last)

    return feed


def _refused_as_json(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except BatonError as error:
        response = error_response(error)
        assert 400 <= response.status < 500
        assert len(orjson.loads(response.body)["error"]["message"]) < 500
        raise


HTTP_TARGETS = [
    Target("completions", _body(COMPLETION), _feed(lambda data: parse_completion(data, MODEL))),
    Target("chats", _body(CHAT), _feed(lambda data: parse_chat(data, MODEL))),
    Target(
        "texts to tokenise", _body(TOKENIZE), lambda data: _refused_as_json(lambda it: parse_tokenize(it, MODEL), data)
    ),
    Target(
        "tokens to read", _body(DETOKENIZE), lambda data: _refused_as_json(lambda it: parse_detokenize(it, MODEL), data)
    ),
]
