"""/v1/chat/completions with OpenAI's client, against a live cluster whose template joins the messages' texts."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.clients.cluster import MODEL, Served

SUM: list[Any] = [{"role": "user", "content": "add 17 + 38 ="}]
WRITE: list[Any] = [{"role": "user", "content": "write : the old fox"}]
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0.0}


def _text(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_a_conversation_is_answered_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=SUM, **GREEDY)
    message = whole.choices[0].message
    assert (message.role, message.content, whole.choices[0].finish_reason) == ("assistant", " 55", "stop")
    chunks = list(client.chat.completions.create(messages=SUM, stream=True, **GREEDY))
    assert _text(chunks) == " 55"
    first, last = chunks[0].choices[0], chunks[-1].choices[0]
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    assert (last.delta.content, last.finish_reason) == (None, "stop")


def test_the_accumulating_stream_of_the_client_gives_the_whole_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(messages=SUM, **GREEDY) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == " 55"


def test_texts_in_parts_and_every_role_reach_the_template(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "add 17 +"}, {"type": "text", "text": "38 ="}]
    in_parts: list[Any] = [{"role": "user", "content": parts}]
    joined: list[Any] = [{"role": "user", "content": "add 17 +\n38 ="}]
    answers = [client.chat.completions.create(messages=each, **GREEDY) for each in (in_parts, joined)]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    roles: list[Any] = [
        {"role": "developer", "content": "count"},
        {"role": "system", "content": " 15"},
        {"role": "user", "content": " 16"},
        {"role": "tool", "content": " 17", "tool_call_id": "call-1"},
    ]
    answer = client.chat.completions.create(messages=roles, **GREEDY)
    assert answer.choices[0].message.content == " 18 19 20"


def test_a_final_message_is_continued(client: openai.OpenAI) -> None:
    messages: list[Any] = [*SUM, {"role": "assistant", "content": " 5"}]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    answer = client.chat.completions.create(messages=messages, extra_body=options, **GREEDY)
    assert answer.usage is not None and answer.usage.completion_tokens >= 1


def test_log_probabilities_have_texts_and_bytes(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"messages": SUM, "logprobs": True, "top_logprobs": 3, **GREEDY}
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].logprobs is not None
    tokens = whole.choices[0].logprobs.content or []
    assert b"".join(bytes(token.bytes or []) for token in tokens).startswith(b" 55")
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs) <= 0.0
    streamed = [
        token
        for chunk in client.chat.completions.create(stream=True, **options)
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or []
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    assert [token.logprob for token in streamed] == pytest.approx([token.logprob for token in tokens], abs=1e-4)


def test_stop_cuts_the_text(client: openai.OpenAI) -> None:
    counted: list[Any] = [{"role": "user", "content": "count 15 16 17"}]
    for stop in (" 19", [" 77", " 19"]):
        whole = client.chat.completions.create(messages=counted, stop=stop, **GREEDY)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (" 18", "stop")
        streamed = client.chat.completions.create(messages=counted, stop=stop, stream=True, **GREEDY)
        assert _text(list(streamed)) == " 18"


def test_a_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(messages=WRITE, model=MODEL, seed=seed, n=3, temperature=1.2)
        return [choice.message.content for choice in answer.choices]

    assert texts(4) == texts(4)
    assert texts(4) != texts(5)


@pytest.mark.parametrize("name", ["max_completion_tokens", "max_tokens"])
def test_either_name_limits_the_tokens(client: openai.OpenAI, name: str) -> None:
    limit: dict[str, Any] = {name: 3}
    answer = client.chat.completions.create(messages=WRITE, extra_body={"ignore_eos": True}, **limit, **GREEDY)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 3


def test_usage_comes_in_a_chunk_of_its_own_if_it_is_asked_for(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"messages": SUM, "stream": True, **GREEDY}
    *chunks, last = client.chat.completions.create(stream_options={"include_usage": True}, **options)
    assert last.choices == [] and last.usage is not None
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    whole = client.chat.completions.create(messages=SUM, **GREEDY).usage
    assert whole is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)
    assert all(chunk.choices and chunk.usage is None for chunk in client.chat.completions.create(**options))


def test_continuous_usage_counts_up(client: openai.OpenAI) -> None:
    wanted: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(messages=SUM, stream=True, stream_options=wanted, **GREEDY))
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts) and counts[-1] >= 2


def test_a_second_turn_finds_the_first_one_in_the_cache(client: openai.OpenAI) -> None:
    first = {"role": "user", "content": "count 15 16 17 " * 40}
    for _ in range(2):
        answer = client.chat.completions.create(messages=[first], max_tokens=4, **GREEDY)  # type: ignore[list-item]
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) >= 100


async def _async_stream(served: Served) -> str:
    async with served.async_client(max_retries=0) as client:
        return _text(
            [chunk async for chunk in await client.chat.completions.create(messages=SUM, stream=True, **GREEDY)]
        )


def test_the_asynchronous_client_streams(served: Served) -> None:
    assert asyncio.run(_async_stream(served)) == " 55"
