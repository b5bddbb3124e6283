"""Errors as OpenAI's client takes them: its exceptions, and whether it sends a request again."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import httpx
import openai
import pytest

from baton.http.errors import InvalidField, ModelNotFound, error_response
from baton.http.response import BodyTooLarge, MethodNotAllowed, RouteNotFound
from baton.protocol.errors import (
    ERRORS_BY_NAME,
    BatonError,
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NoRouter,
    NotFound,
    NoWorkers,
    Overloaded,
    PermissionDenied,
    PromptTooLong,
    Unauthenticated,
    WorkerLost,
)
from tests.gateway.http.answering import answer, client
from tests.gateway.http.bodies import parse

MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]
EXPECTED: list[tuple[BatonError, int, type[openai.APIStatusError], str | None, int]] = [
    # Error, status, the client's exception, code, requests with two retries
    (InvalidRequest("x"), 400, openai.BadRequestError, None, 1),
    (InvalidField("n is 0.", "n"), 400, openai.BadRequestError, None, 1),
    (PromptTooLong("x"), 400, openai.BadRequestError, "context_length_exceeded", 1),
    (BodyTooLarge("x"), 413, openai.APIStatusError, "request_too_large", 1),
    (MethodNotAllowed("GET", "/v1/completions", "POST"), 405, openai.APIStatusError, "method_not_allowed", 1),
    (Unauthenticated("x"), 401, openai.AuthenticationError, "invalid_api_key", 1),
    (PermissionDenied("x"), 403, openai.PermissionDeniedError, "permission_denied", 1),
    (ModelNotFound("x"), 404, openai.NotFoundError, "model_not_found", 1),
    (RouteNotFound("POST", "/v1/embeddings"), 404, openai.NotFoundError, "unknown_url", 1),
    (NotFound("x"), 404, openai.NotFoundError, "not_found", 1),
    (Overloaded("x", 0.001), 429, openai.RateLimitError, "rate_limit_exceeded", 3),
    (NoWorkers("x"), 503, openai.InternalServerError, "service_unavailable", 1),
    (DeadlineExceeded("x"), 504, openai.InternalServerError, "deadline_exceeded", 1),
    (Cancelled("x"), 499, openai.APIStatusError, "cancelled", 1),
    (InternalError("x"), 500, openai.InternalServerError, "internal_error", 1),
]


def _failing(error: BatonError, seen: list[httpx.Request]) -> openai.OpenAI:
    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        refusal = error_response(error, context_tokens=64)
        return httpx.Response(refusal.status, headers=refusal.headers, content=refusal.body)

    http = httpx.Client(transport=httpx.MockTransport(handle))
    return openai.OpenAI(api_key="key", base_url="http://baton/v1", http_client=http, max_retries=2)


@pytest.mark.parametrize(("error", "status", "kind", "code", "requests"), EXPECTED, ids=lambda value: str(value)[:30])
def test_the_client_raises_its_exception_and_retries_only_what_can_help(
    error: BatonError, status: int, kind: type[openai.APIStatusError], code: str | None, requests: int
) -> None:
    seen: list[httpx.Request] = []
    with pytest.raises(kind) as raised:
        _failing(error, seen).chat.completions.create(model="tiny", messages=MESSAGES)
    assert (raised.value.status_code, raised.value.code) == (status, code)
    assert error.message in raised.value.message
    assert len(seen) == requests


def test_the_client_waits_as_long_as_the_refusal_says() -> None:
    seen: list[httpx.Request] = []
    started_s = time.monotonic()
    with pytest.raises(openai.RateLimitError):
        _failing(Overloaded("x", 0.05), seen).completions.create(model="tiny", prompt="Hi")
    assert 0.1 <= time.monotonic() - started_s < 0.45  # The client's own first wait is longer


def test_the_hint_is_in_milliseconds_and_in_whole_seconds() -> None:
    headers = error_response(Overloaded("x", 1.2345)).headers
    assert (headers["retry-after-ms"], headers["retry-after"]) == ("1234", "2")
    assert "retry-after" not in error_response(Overloaded("x")).headers
    assert error_response(Overloaded("x")).headers["x-should-retry"] == "false"


@pytest.mark.parametrize("name", ERRORS_BY_NAME)
def test_every_error_has_a_status_that_agrees_with_whether_a_retry_helps(name: str) -> None:
    error = ERRORS_BY_NAME[name]("It failed.")
    response = error_response(error)
    body = json.loads(response.body)["error"]
    assert body["message"] == "It failed."
    assert set(body) == {"message", "type", "param", "code"}
    assert response.status != 409
    retry = response.headers["x-should-retry"]
    assert retry == ("true" if error.retryable and name not in ("NoWorkers", "Overloaded") else "false")
    assert retry == "false" or response.status in (429, 503)


def test_an_error_names_its_field_and_the_length_of_the_context() -> None:
    assert json.loads(error_response(InvalidField("n is 0.", "n")).body)["error"]["param"] == "n"
    assert json.loads(error_response(ModelNotFound("x")).body)["error"]["param"] == "model"
    message = json.loads(error_response(PromptTooLong("Too long."), context_tokens=64).body)["error"]["message"]
    assert message == "This model's maximum context length is 64 tokens. Too long."


def test_a_message_with_half_a_character_is_sent_without_it() -> None:
    assert json.loads(error_response(InvalidRequest("a\ud800b")).body)["error"]["message"] == "a?b"


def test_an_error_inside_a_stream_is_raised_after_its_tokens() -> None:
    began = answer(parse("chat", stream=True), [[70, 71]], random.Random(0)).removesuffix(b"data: [DONE]\n\n")
    content = began + error_response(WorkerLost("The worker died."), in_stream=True).body
    handle = httpx.MockTransport(
        lambda _: httpx.Response(200, headers={"content-type": "text/event-stream"}, content=content)
    )
    library = openai.OpenAI(api_key="key", base_url="http://baton/v1", http_client=httpx.Client(transport=handle))
    read = []
    with pytest.raises(openai.APIError, match="The worker died"):
        for event in library.chat.completions.create(model="tiny", messages=MESSAGES, stream=True):
            read.append(event.choices[0].delta.content or "")
    assert len("".join(read)) == 2
    assert content.endswith(b"data: [DONE]\n\n")


def test_a_refused_body_becomes_the_clients_exception() -> None:
    library = client(lambda ask: [[70]] * ask.num_sequences, random.Random(0))
    with pytest.raises(openai.BadRequestError, match="response_format is not supported") as refused:
        library.chat.completions.create(model="tiny", messages=MESSAGES, response_format={"type": "json_object"})
    assert refused.value.param == "response_format"
    with pytest.raises(openai.NotFoundError) as missing:
        library.completions.create(model="gpt-4", prompt="Hi")
    assert missing.value.code == "model_not_found"


def test_a_lost_connection_to_the_router_is_worth_a_retry() -> None:
    assert error_response(NoRouter("x")).headers["x-should-retry"] == "true"
