"""The shipped model loads as it stands, and its questions have the answers they claim."""

from __future__ import annotations

import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from baton.builtin_model import CHECKPOINT
from baton.builtin_model.sentences import is_sentence, sentence
from baton.builtin_model.tasks import SMALL_TASKS, Task, add, count_on, look_up, repeat, sort_words, write
from baton.builtin_model.words import NOUNS

ALL_TASKS = (look_up, *SMALL_TASKS)
TOKENIZER = AutoTokenizer.from_pretrained(CHECKPOINT)


def test_the_checkpoint_is_at_most_8_mb() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 8_000_000


def test_transformers_loads_the_checkpoint_with_grouped_queries_and_4096_positions() -> None:
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT)
    config = model.config
    assert config.model_type == "llama"
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.max_position_embeddings == 4096
    assert config.vocab_size == len(TOKENIZER)
    assert config.eos_token_id == TOKENIZER.eos_token_id
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_the_folder_holds_the_files_of_a_hugging_face_checkpoint() -> None:
    names = {file.name for file in CHECKPOINT.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert {"tokenizer_config.json", "chat_template.jinja"} <= names
    assert json.loads((CHECKPOINT / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_the_chat_template_joins_messages_and_ends_answers() -> None:
    turns = [("user", "maple = 4821\n\nmaple ="), ("assistant", " 4821"), ("user", "\nmaple =")]
    messages = [{"role": role, "content": content} for role, content in turns]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "maple = 4821\n\nmaple = 4821<eos>\nmaple ="


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=False) == text


def test_a_line_of_a_list_is_seven_tokens_whatever_its_name() -> None:
    assert {len(TOKENIZER.encode(f"{name} = 4821\n")) for name in NOUNS} == {7}


@pytest.mark.parametrize("make", ALL_TASKS)
def test_a_prompt_and_its_answer_tokenise_alike_together_and_apart(make) -> None:
    rng = random.Random(7)
    for _ in range(100):
        task = make(rng)
        apart = TOKENIZER.encode(task.prompt) + TOKENIZER.encode(task.answer)
        assert TOKENIZER.encode(task.prompt + task.answer) == apart


@pytest.mark.parametrize("make", ALL_TASKS)
def test_the_same_seed_asks_the_same_questions_and_another_others(make) -> None:
    def ask(seed: int) -> list[Task]:
        rng = random.Random(seed)
        return [make(rng) for _ in range(20)]

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


@pytest.mark.parametrize("make", ALL_TASKS)
def test_a_task_accepts_its_answer_and_nothing_longer(make) -> None:
    rng = random.Random(3)
    for _ in range(50):
        task = make(rng)
        assert task.accepts(task.answer)
        assert not task.accepts(task.answer + " ")
        assert not task.accepts("")


def test_a_look_up_asks_for_one_of_its_lines() -> None:
    task = look_up(random.Random(5), 200)
    *lines, blank, asked = task.prompt.split("\n")
    listed = dict(line.split(" = ") for line in lines)
    assert len(listed) == 200
    assert blank == ""
    assert task.answer == " " + listed[asked.removesuffix(" =")]


def test_repeats_counts_sorts_and_sums_have_the_right_answers() -> None:
    rng = random.Random(11)
    for _ in range(200):
        task = repeat(rng)
        assert task.prompt == f'repeat "{task.answer} " :'
        task = count_on(rng)
        numbers = [int(word) for word in (task.prompt + task.answer).split()[1:]]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert [number % 10 for number in map(int, task.answer.split())].index(0) == len(task.answer.split()) - 1
        task = sort_words(rng)
        assert task.answer.split() == sorted(task.prompt.removesuffix(" :").split()[1:])
        task = add(rng)
        assert int(task.answer) == sum(int(word) for word in task.prompt.split() if word.isdigit())


def test_the_grammar_knows_its_own_sentences_and_refuses_others() -> None:
    rng = random.Random(13)
    for _ in range(200):
        text = sentence(rng)
        assert is_sentence(text)
        words = text.split()
        assert not is_sentence(" ".join(words[1:]))
        assert not is_sentence(" ".join(words[:-1]))
        assert write(rng).prompt.startswith("write : ")
    assert not is_sentence("the forest sleeps .")
    assert not is_sentence("the old fox fox sleeps .")
