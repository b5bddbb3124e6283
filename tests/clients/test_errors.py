"""What OpenAI's client raises, and when it sends a request again, against a live cluster with tokens and limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from baton.config.schema import AccessSection
from tests.clients.cluster import CONTEXT_TOKENS, MODEL, Served, serve
from tests.live.secured_cluster import entries_for, token_of

LONG: dict[str, Any] = {"model": MODEL, "prompt": "write :", "max_tokens": 900, "extra_body": {"ignore_eos": True}}
SHORT: dict[str, Any] = {"model": MODEL, "prompt": "write :", "max_tokens": 2}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tenant may have one answer under way."""
    tokens = tmp_path_factory.mktemp("access") / "tokens.toml"
    tokens.write_text(entries_for({"acme": ["generate"], "operator": ["admin"]}))
    access = AccessSection(tokens_file=str(tokens), max_streams_per_tenant=1)
    with serve({"mixed": 1}, "predicted_latency", access) as running:
        yield running


@pytest.fixture
def acme(limited: Served) -> Iterator[openai.OpenAI]:
    with limited.client(token_of("acme"), max_retries=0) as made:
        yield made


def test_a_token_is_needed_and_must_be_allowed_to_generate(limited: Served) -> None:
    with limited.client("wrong", max_retries=0) as client, pytest.raises(openai.AuthenticationError) as refused:
        client.models.list()
    assert refused.value.response.headers["www-authenticate"] == "Bearer"
    with limited.client(token_of("operator"), max_retries=0) as client, pytest.raises(openai.PermissionDeniedError):
        client.completions.create(**SHORT)


def test_the_model_is_listed_and_another_is_not_found(acme: openai.OpenAI) -> None:
    listed = acme.models.list().data
    assert [model.id for model in listed] == [MODEL]
    assert listed[0].model_extra is not None and listed[0].model_extra["max_model_len"] == CONTEXT_TOKENS
    with pytest.raises(openai.NotFoundError) as refused:
        acme.completions.create(**{**SHORT, "model": "gpt-9"})
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_a_prompt_that_is_too_long_names_the_context(acme: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=f"maximum context length is {CONTEXT_TOKENS}") as refused:
            acme.completions.create(model=MODEL, prompt=[7] * (CONTEXT_TOKENS + 1), stream=stream)
        assert refused.value.code == "context_length_exceeded"
        assert refused.value.response.headers["x-should-retry"] == "false"


def test_a_wrong_field_is_named(acme: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        acme.completions.create(**SHORT, temperature=-1.0)
    assert refused.value.param == "temperature"


def test_the_request_id_is_the_clients_or_a_new_one(acme: openai.OpenAI) -> None:
    given = acme.completions.with_raw_response.create(**SHORT, extra_headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert given.parse().id.endswith("mine-1")
    assert acme.completions.create(**SHORT)._request_id


def test_a_refusal_for_load_has_a_time_after_which_the_client_tries_again(limited: Served, acme: openai.OpenAI) -> None:
    running = acme.completions.create(**LONG, stream=True)
    next(running)
    with pytest.raises(openai.RateLimitError) as refused:
        acme.completions.create(**SHORT)
    headers = refused.value.response.headers
    assert (headers["retry-after"], headers["retry-after-ms"], headers["x-should-retry"]) == ("1", "1000", "true")
    leave = threading.Timer(0.3, running.close)
    leave.start()
    started_s = time.monotonic()
    with limited.client(token_of("acme"), max_retries=2) as patient:
        assert patient.completions.create(**SHORT).choices[0].text
    assert time.monotonic() - started_s >= 1.0
    leave.join()


def test_an_objective_that_cannot_be_met_is_not_tried_again(limited: Served) -> None:
    with limited.client(token_of("acme"), max_retries=5) as client:
        client.completions.create(**SHORT)  # Speeds are known from the first answers on
        started_s = time.monotonic()
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(
                model=MODEL, prompt=[7] * 900, max_tokens=2, extra_headers={"x-baton-ttft-ms": "0.01"}
            )
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert time.monotonic() - started_s < 0.4  # The client's first wait is longer


def test_paths_that_are_not_served_have_an_error_of_the_same_form(acme: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        acme.embeddings.create(model=MODEL, input="text")
    assert refused.value.code == "unknown_url"
