"""`langchain-openai`, against a live cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAI

from tests.clients.cluster import MODEL, Served

SUMS: list[Any] = [f"add {number} + 20 =" for number in range(11, 17)]
ANSWERS = [f" {number + 20}" for number in range(11, 17)]


@pytest.fixture(scope="module")
def options(served: Served) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LANGSMITH_TRACING", "false")
        yield {
            "model": MODEL,
            "base_url": f"http://{served.address}/v1",
            "api_key": "none",
            "temperature": 0.0,
            "max_retries": 0,
        }


def test_a_chat_streams_and_counts_its_tokens_once(options: dict[str, Any]) -> None:
    model = ChatOpenAI(**options, stream_usage=True)
    chunks = list(model.stream(SUMS[0]))
    assert "".join(str(chunk.content) for chunk in chunks) == ANSWERS[0]
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    whole = model.invoke(SUMS[0])
    assert total.usage_metadata == whole.usage_metadata is not None  # type: ignore[attr-defined]
    assert whole.content == ANSWERS[0]
    assert whole.response_metadata["finish_reason"] == "stop"


def test_a_batch_of_chats_is_answered_in_order(options: dict[str, Any]) -> None:
    assert [message.content for message in ChatOpenAI(**options).batch(SUMS)] == ANSWERS


def test_chats_of_one_event_loop_are_answered_in_order(options: dict[str, Any]) -> None:
    answers = asyncio.run(ChatOpenAI(**options).abatch(SUMS))
    assert [message.content for message in answers] == ANSWERS


def test_completions_stream_and_come_in_batches(options: dict[str, Any]) -> None:
    model = OpenAI(**options)
    assert "".join(model.stream(SUMS[1])) == ANSWERS[1]
    assert model.batch(SUMS) == ANSWERS


@pytest.mark.parametrize(
    ("method", "field"),
    [("json_schema", "response_format"), ("json_mode", "response_format"), ("function_calling", "tool_choice")],
)
def test_structured_output_is_refused_by_a_sentence_that_names_the_field(
    options: dict[str, Any], method: Any, field: str
) -> None:
    schema = {"title": "Sum", "description": "A sum.", "type": "object", "properties": {"sum": {"type": "integer"}}}
    model = ChatOpenAI(**options).with_structured_output(schema, method=method)
    with pytest.raises(openai.BadRequestError, match=rf"{field}.* not supported") as caught:
        model.invoke("Answer in JSON: add 17 + 38 =")
    assert caught.value.param == field
