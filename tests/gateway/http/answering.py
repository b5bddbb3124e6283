"""Answers to bodies, from token ids on: the text is made as a gateway makes it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai

from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.stream import OutputStream, TextToken
from baton.gateway.http.answers import renderer
from baton.gateway.http.ask import Ask, TokenLogprobs
from baton.http.errors import error_response
from baton.protocol.errors import BatonError
from baton.protocol.gateway_messages import TokenOutput
from baton.protocol.latency import Latency
from baton.protocol.request import FinishReason, Request
from baton.protocol.sampling import with_defaults
from tests.gateway.http.bodies import MODEL, PARSERS
from tests.gateway.vocabularies import vocabulary

WORDS = vocabulary("byte level")
PATHS = {"/v1/completions": "completion", "/v1/chat/completions": "chat"}
Written = tuple[int, list[TextToken], StreamEnd | None]
"""A sequence, and its tokens and end that are written at once."""


def prompts_of(ask: Ask) -> list[list[int]]:
    """The token ids of a body's prompts; of a chat its texts in a row."""
    texts = ask.prompts if ask.chat is None else ("".join(message["content"] for message in ask.chat.messages),)
    return [WORDS.encode(prompt, False) if isinstance(prompt, str) else list(prompt) for prompt in texts]


def output_of(
    ask: Ask, prompt: list[int], token_ids: list[int], reason: FinishReason = FinishReason.STOP
) -> tuple[list[TextToken], StreamEnd]:
    """The tokens of one sequence and its end. A token's log-probability follows from its place."""
    sampling = {**ask.sampling, "max_tokens": len(token_ids), "prompt_logprobs": None}
    request = Request("r", tuple(prompt), with_defaults(sampling, {}))
    output, tokens = OutputStream(request, WORDS), []
    for index, token_id in enumerate(token_ids):
        logprob, top = None, tuple[tuple[int, float], ...]()
        if request.sampling.logprobs is not None:
            logprob = -index / 8
            likeliest = ((token_id, logprob), (70 + index % 5, -20.0), (2, float("-inf")))
            top = likeliest[: request.sampling.logprobs]
        finish = reason if index == len(token_ids) - 1 else None
        tokens += output.accept(TokenOutput("r", index, token_id, logprob, top, finish=finish))
    end = StreamEnd("r", output.reason, None, len(prompt), len(tokens), 0, output.trailing_text, Latency(0.0))
    return tokens, end


def prompt_scores(token_ids: list[int]) -> list[TokenLogprobs]:
    """Log-probabilities of a prompt's tokens, each of which is the likeliest in its place."""
    return [(None, ()), *((-at / 4, ((token_id, -at / 4),)) for at, token_id in enumerate(token_ids[1:], 1))]


def split(rng: random.Random, sequences: list[tuple[list[TextToken], StreamEnd]]) -> Iterator[Written]:
    """All tokens of some sequences, in pieces of any size, each sequence in order."""
    waiting = {sequence: list(tokens) for sequence, (tokens, _) in enumerate(sequences)}
    while waiting:
        sequence = rng.choice(sorted(waiting))
        tokens = waiting[sequence]
        count = rng.randint(0, min(3, len(tokens)))
        ended = count == len(tokens) and rng.random() < 0.5
        yield sequence, tokens[:count], sequences[sequence][1] if ended else None
        waiting[sequence] = tokens[count:]
        if ended:
            del waiting[sequence]


def answer(ask: Ask, outputs: list[list[int]], rng: random.Random) -> bytes:
    """Everything that is sent for a body, given the token ids of each sequence."""
    prompts = prompts_of(ask)
    sequences = [
        output_of(ask, prompts[ask.prompt_of(sequence)[0]], token_ids) for sequence, token_ids in enumerate(outputs)
    ]
    written = renderer(ask, "id-1", 7, prompts, WORDS)
    if ask.sampling.get("prompt_logprobs") is not None:
        for prompt, token_ids in enumerate(prompts):
            written.prompt_logprobs(prompt, prompt_scores(token_ids))
    return b"".join(written.write(*piece) for piece in split(rng, sequences)) + written.close()


def client(outputs: Callable[[Ask], list[list[int]]], rng: random.Random, retries: int = 0) -> openai.OpenAI:
    """OpenAI's client, whose requests are parsed and answered here without a server."""

    def handle(request: httpx.Request) -> httpx.Response:
        try:
            ask = PARSERS[PATHS[request.url.path]](request.content, MODEL, dict(request.headers))
            kind = "text/event-stream" if ask.stream else "application/json"
            return httpx.Response(200, headers={"content-type": kind}, content=answer(ask, outputs(ask), rng))
        except BatonError as error:
            refusal = error_response(error, context_tokens=MODEL.context_tokens)
            return httpx.Response(refusal.status, headers=refusal.headers, content=refusal.body)

    http = httpx.Client(transport=httpx.MockTransport(handle))
    return openai.OpenAI(api_key="key", base_url="http://baton/v1", http_client=http, max_retries=retries)


def events(sent: bytes) -> list[Any]:
    """The objects of a stream; it must end with [DONE]."""
    *found, done, nothing = sent.decode().split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in found]
