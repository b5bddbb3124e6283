"""/v1/completions with OpenAI's client, against a live cluster."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from baton.builtin_model import CHECKPOINT
from baton.engine.tokenizer import Tokenizer
from tests.clients.cluster import MODEL, Served

SUM = "add 17 + 38 ="
SORT = "sort lime fig bear :"
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0.0}


def _ids(text: str) -> list[int]:
    return Tokenizer(CHECKPOINT).encode(text, False)


def test_a_text_is_completed_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt=SORT, **GREEDY)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (" bear fig lime", "stop")
    assert whole.usage is not None and whole.usage.prompt_tokens == len(_ids(SORT))
    chunks = list(client.completions.create(prompt=SORT, stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in chunks) == " bear fig lime"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_prompt_has_any_of_four_forms(client: openai.OpenAI) -> None:
    prompts: list[tuple[Any, list[str]]] = [
        (SUM, [" 55"]),
        ([SUM, SORT], [" 55", " bear fig lime"]),
        (_ids(SUM), [" 55"]),
        ([_ids(SORT), _ids(SUM)], [" bear fig lime", " 55"]),
    ]
    for prompt, expected in prompts:
        answer = client.completions.create(prompt=prompt, **GREEDY)
        assert [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)] == expected


def test_streams_of_several_prompts_are_told_apart_by_their_index(client: openai.OpenAI) -> None:
    texts = ["", ""]
    for chunk in client.completions.create(prompt=[SUM, SORT], stream=True, **GREEDY):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [" 55", " bear fig lime"]


def test_echo_puts_the_prompt_first(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt=SUM, echo=True, **GREEDY)
    assert whole.choices[0].text == SUM + " 55"
    chunks = client.completions.create(prompt=_ids(SUM), echo=True, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in chunks) == SUM + " 55"


def test_log_probabilities_belong_to_their_tokens(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt=SORT, logprobs=2, **GREEDY)
    found = whole.choices[0].logprobs
    assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs and found.text_offset
    assert "".join(found.tokens).startswith(whole.choices[0].text)
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert logprob == max(top.values()) == top[token] <= 0.0
        assert len(top) == 2
    streamed = [
        logprob
        for chunk in client.completions.create(prompt=SORT, logprobs=2, stream=True, **GREEDY)
        if (logprobs := chunk.choices[0].logprobs) is not None
        for logprob in logprobs.token_logprobs or []
    ]
    assert streamed == pytest.approx(found.token_logprobs, abs=1e-4)


def test_n_answers_of_one_prompt_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "prompt": "write : the old fox", "n": 4, "temperature": 1.2, "seed": 9}
    first, second = (client.completions.create(**options) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    assert texts == [choice.text for choice in second.choices]


def test_sixteen_tokens_are_the_default(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="count 15 16", extra_body={"ignore_eos": True})
    assert answer.usage is not None and answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


async def _many(served: Served) -> list[str]:
    async def read(client: openai.AsyncOpenAI, number: int) -> str:
        text = ""
        prompt = f"add {number} + 20 ="
        if number % 2:
            return (await client.completions.create(prompt=prompt, **GREEDY)).choices[0].text
        async for chunk in await client.completions.create(prompt=prompt, stream=True, **GREEDY):
            text += chunk.choices[0].text
        return text

    async with served.async_client(max_retries=0) as client:
        return await asyncio.gather(*(read(client, number) for number in range(11, 19)))


def test_eight_asynchronous_answers_at_once_are_right(served: Served) -> None:
    assert asyncio.run(_many(served)) == [f" {number + 20}" for number in range(11, 19)]
