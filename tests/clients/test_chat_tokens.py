"""Chats with a model that has a template of turns: the greedy tokens are those of transformers on the same prompt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import transformers

from tests.checkpoints import build_checkpoint
from tests.clients.cluster import CONTEXT_TOKENS, MODEL, Served, serve

TEMPLATE = """{% for message in messages -%}
<{{ message.role }}>{{ message.content | trim }}</{{ message.role }}>
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
WORDS = ("the old fox", "17 + 38", "Grüße 🌍", "def f(x):", "Tell me a long story about the sea. " * 9)
AT_ONCE, MAX_TOKENS = 8, 24


@dataclass(frozen=True)
class Chats:
    """The served model, and transformers' answers to conversations of one to three turns."""

    served: Served
    conversations: list[list[dict[str, str]]]
    prompts: list[list[int]]
    answers: list[list[int]]


def _conversation(number: int) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": "Answer."}] if number % 2 else []
    for turn in range(number % 3):
        messages += [{"role": "user", "content": f"turn {turn}"}, {"role": "assistant", "content": f" yes {number} "}]
    return [*messages, {"role": "user", "content": f"{number}: {WORDS[number % len(WORDS)]}"}]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chats]:
    folder = build_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=CONTEXT_TOKENS)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    conversations = [_conversation(number) for number in range(AT_ONCE)]
    prompts, answers = _transformers(folder, conversations)
    with serve({"prefill": 1, "decode": 1}, checkpoint=folder) as served:
        yield Chats(served, conversations, prompts, answers)


def _transformers(folder: Path, conversations: list[list[dict[str, str]]]) -> tuple[list[list[int]], list[list[int]]]:
    """The token ids of each prompt, and of its greedy answer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts: list[list[int]] = []
    answers: list[list[int]] = []
    for messages in conversations:
        ids: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        given = torch.tensor([ids])
        with torch.no_grad():
            output = model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=MAX_TOKENS, do_sample=False
            )
        prompts.append(ids)
        answers.append(output[0, len(ids) :].tolist())
    return prompts, answers


async def _answer(client: openai.AsyncOpenAI, messages: list[Any], stream: bool) -> tuple[list[int], list[int]]:
    """The token ids of the prompt and of the answer."""
    extra = {"return_token_ids": True}
    options: dict[str, Any] = {"model": MODEL, "temperature": 0.0, "max_tokens": MAX_TOKENS, "extra_body": extra}
    if not stream:
        whole = await client.chat.completions.create(messages=messages, **options)
        return whole.prompt_token_ids, whole.choices[0].token_ids  # type: ignore[attr-defined]
    prompt: list[int] = []
    answer: list[int] = []
    async for chunk in await client.chat.completions.create(messages=messages, stream=True, **options):
        prompt += getattr(chunk, "prompt_token_ids", None) or []
        for choice in chunk.choices:
            answer += getattr(choice, "token_ids", None) or []
    return prompt, answer


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_greedy_chats_at_once_have_the_tokens_of_transformers(chats: Chats, stream: bool) -> None:
    async def ask() -> list[tuple[list[int], list[int]]]:
        async with chats.served.async_client() as client:
            return await asyncio.gather(*(_answer(client, one, stream) for one in chats.conversations))

    got = asyncio.run(ask())
    assert [prompt for prompt, _ in got] == chats.prompts
    assert [answer for _, answer in got] == chats.answers
    assert len({tuple(answer) for answer in chats.answers}) > AT_ONCE // 2
