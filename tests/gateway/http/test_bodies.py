"""Bodies of completions and chats: what is read, and which defaults they have."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.gateway.http.ask import HttpModel
from baton.gateway.http.chat import parse_chat
from baton.gateway.http.common_fields import MAX_SEQUENCES
from baton.gateway.http.completions import parse_completion
from baton.http.errors import InvalidField, ModelNotFound
from baton.http.response import MAX_BODY_BYTES, BodyTooLarge
from baton.protocol.request import Objectives
from baton.protocol.sampling import with_defaults
from tests.gateway.http.bodies import MODEL, PARSERS, SMALLEST, parse

each_kind = pytest.mark.parametrize("kind", PARSERS)


def test_a_completion_has_openais_defaults_and_not_those_of_grpc() -> None:
    ask = parse("completion")
    assert ask.prompts == ("Hi",)
    assert ask.sampling == {"temperature": 1.0, "max_tokens": 16}
    assert (ask.n, ask.best_of, ask.stream, ask.logprobs, ask.add_special_tokens) == (1, 1, False, None, True)


def test_a_chat_may_fill_the_context_and_its_template_has_the_special_tokens() -> None:
    ask = parse("chat")
    assert ask.sampling == {"temperature": 1.0, "max_tokens": MODEL.context_tokens}
    assert ask.add_special_tokens is False
    assert ask.chat is not None
    assert ask.chat.messages == ({"role": "user", "content": "Hi"},)
    assert (ask.chat.add_generation_prompt, ask.chat.continue_final_message) == (True, False)


@each_kind
def test_defaults_of_the_checkpoint_come_before_those_of_openai(kind: str) -> None:
    model = replace(MODEL, sampling_defaults={"temperature": 0.6, "max_tokens": 9, "top_k": 20})
    sampling = parse(kind, model).sampling
    assert sampling == {"temperature": 0.6, "max_tokens": 9 if kind == "chat" else 16}
    assert with_defaults(sampling, model.sampling_defaults).top_k == 20
    assert parse(kind, model, temperature=0).sampling["temperature"] == 0.0


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        ([[1], "b"], ((1,), "b")),
    ],
)
def test_a_prompt_may_be_texts_or_token_ids(prompt: Any, read: Any) -> None:
    assert parse("completion", prompt=prompt).prompts == read


SAMPLING = {
    "temperature": (0.5, 0.5),
    "top_p": (0.9, 0.9),
    "min_p": (0.1, 0.1),
    "top_k": (-1, 0),
    "repetition_penalty": (1.1, 1.1),
    "presence_penalty": (-1, -1.0),
    "frequency_penalty": (1, 1.0),
    "seed": (-(2**63), -(2**63)),
    "min_tokens": (3.0, 3),
    "stop": ("\n", ("\n",)),
    "stop_token_ids": ([1, 2], (1, 2)),
    "ignore_eos": (True, True),
    "include_stop_str_in_output": (True, True),
    "logit_bias": ({"5": 1, "3": -2.5}, ((3, -2.5), (5, 1.0))),
}


@each_kind
def test_every_sampling_field_is_read(kind: str) -> None:
    ask = parse(kind, **{name: value for name, (value, _) in SAMPLING.items()})
    expected = {name: value for name, (_, value) in SAMPLING.items()}
    assert {name: ask.sampling[name] for name in SAMPLING} == expected
    assert ask.ignored == ()


@each_kind
@pytest.mark.parametrize("name", [*SAMPLING, "n", "stream", "stream_options", "user", "model", "baton", "logprobs"])
def test_null_is_as_good_as_nothing(kind: str, name: str) -> None:
    assert parse(kind, **{name: None}) == parse(kind)


def test_messages_reach_the_template_with_their_texts_and_tool_calls() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "1", "tool_call_id": "c", "name": None},
    ]
    ask = parse("chat", messages=messages, chat_template_kwargs={"thinking": True}, reasoning_effort="low")
    assert ask.chat is not None
    system, assistant, tool = ask.chat.messages
    assert system == {"role": "developer", "content": "a\nb"}
    assert assistant["content"] == ""
    assert assistant["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert tool == {"role": "tool", "content": "1", "tool_call_id": "c"}
    assert ask.chat.template_options == {"thinking": True, "reasoning_effort": "low"}


def test_a_final_message_is_continued_instead_of_answered() -> None:
    ask = parse("chat", continue_final_message=True)
    assert ask.chat is not None
    assert (ask.chat.continue_final_message, ask.chat.add_generation_prompt) == (True, False)
    with pytest.raises(InvalidField, match="only one may be"):
        parse("chat", continue_final_message=True, add_generation_prompt=True)


def test_the_newer_limit_of_a_chat_counts() -> None:
    assert parse("chat", max_tokens=5, max_completion_tokens=9).sampling["max_tokens"] == 9
    assert parse("chat", max_tokens=5).sampling["max_tokens"] == 5


def test_alternatives_of_a_chat_need_logprobs() -> None:
    assert parse("chat", logprobs=True).logprobs == 0
    assert parse("chat", logprobs=True, top_logprobs=5).sampling["logprobs"] == 5
    assert parse("chat", logprobs=False, top_logprobs=0).logprobs is None
    with pytest.raises(InvalidField, match="needs logprobs"):
        parse("chat", top_logprobs=5)


def test_a_prompt_alone_can_be_echoed() -> None:
    ask = parse("completion", echo=True, max_tokens=0)
    assert (ask.prompt_only, ask.sampling["max_tokens"]) == (True, 1)


@each_kind
def test_log_probabilities_of_the_prompt_are_computed_where_they_are_shown(kind: str) -> None:
    assert parse(kind, prompt_logprobs=3).sampling["prompt_logprobs"] == 3
    assert "prompt_logprobs" not in parse(kind, logprobs=1 if kind == "completion" else True).sampling


def test_an_echo_with_log_probabilities_has_those_of_the_prompt() -> None:
    ask = parse("completion", echo=True, logprobs=2, prompt_logprobs=0, stream=False)
    assert (ask.sampling["prompt_logprobs"], ask.prompt_logprobs, ask.logprobs) == (2, 0, 2)
    assert parse("completion", echo=True, logprobs=2, stream=True).sampling["prompt_logprobs"] == 2
    assert "prompt_logprobs" not in parse("completion", echo=True).sampling


def test_the_best_sequences_are_found_by_log_probabilities() -> None:
    ask = parse("completion", prompt=["a", "b"], n=2, best_of=3)
    assert (ask.num_sequences, ask.prompt_of(4), ask.logprobs, ask.sampling["logprobs"]) == (6, (1, 1), None, 0)
    for fields in ({"n": 2, "best_of": 1}, {"best_of": 2, "stream": True}):
        with pytest.raises(InvalidField) as refused:
            parse("completion", **fields)
        assert refused.value.field == "best_of"


def test_the_number_of_sequences_is_bounded() -> None:
    assert parse("completion", prompt=["a"] * 2, n=MAX_SEQUENCES // 2).num_sequences == MAX_SEQUENCES
    with pytest.raises(InvalidField, match=f"more than {MAX_SEQUENCES} sequences"):
        parse("completion", prompt=["a"] * 2, n=MAX_SEQUENCES // 2 + 1)


@each_kind
def test_usage_is_streamed_only_on_request(kind: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    ask = parse(kind, stream=True, stream_options=options)
    assert (ask.stream, ask.include_usage, ask.continuous_usage) == (True, True, True)
    ask = parse(kind, stream_options=options)
    assert (ask.stream, ask.include_usage, ask.continuous_usage) == (False, False, False)


@each_kind
def test_objectives_and_priority_come_from_the_body_or_the_headers(kind: str) -> None:
    headers = {"x-baton-ttft-ms": "250", "x-baton-tpot-ms": "20.5"}
    ask = PARSERS[kind](json.dumps(SMALLEST[kind]).encode(), MODEL, headers)
    assert ask.objectives == Objectives(0.25, 0.0205)
    body = {**SMALLEST[kind], "priority": 1, "baton": {"ttft_ms": 100, "priority": 2}}
    ask = PARSERS[kind](json.dumps(body).encode(), MODEL, headers)
    assert (ask.objectives, ask.priority) == (Objectives(0.1, 0.0205), 2)
    for text in ("nan", "inf", "-1", "x", "0", ""):
        with pytest.raises(InvalidField, match="x-baton-ttft-ms"):
            PARSERS[kind](json.dumps(SMALLEST[kind]).encode(), MODEL, {"x-baton-ttft-ms": text})


@each_kind
def test_unknown_fields_are_reported_and_harmless_ones_are_not(kind: str) -> None:
    ask = parse(kind, user="u", store=True, metadata={}, unknown=1, other={"a": 1}, absent=None)
    assert ask.ignored == ("unknown", "other")
    many = parse(kind, **{f"{'x' * 1000}{at}": at for at in range(100)}).ignored
    assert len(many) == 16
    assert max(map(len, many)) < 100


@each_kind
def test_an_unknown_model_is_not_found(kind: str) -> None:
    assert parse(kind, model="tiny").model == "tiny"
    with pytest.raises(ModelNotFound, match="`other` does not exist"):
        parse(kind, model="other")


def test_a_body_of_the_largest_size_is_read() -> None:
    body = b'{"prompt": "' + b"x" * (MAX_BODY_BYTES - 14) + b'"}'
    assert len(body) == MAX_BODY_BYTES
    assert len(parse_completion(body, MODEL).prompts[0]) == MAX_BODY_BYTES - 14
    with pytest.raises(BodyTooLarge):
        parse_completion(body + b" ", MODEL)


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4),
    keys=st.dictionaries(st.text(st.sampled_from('"\\:{} a\n')), st.text(st.sampled_from('"\\:{},[] a')), max_size=4),
)
@settings(deadline=None, max_examples=150, database=None)
def test_texts_are_read_as_they_are_whatever_they_look_like(texts: list[str], keys: dict[str, str]) -> None:
    body = json.dumps({"prompt": texts, "x": [keys, {"y": keys}]}).encode()
    assert parse_completion(body, MODEL).prompts == tuple(texts)
    ask = parse_chat(
        json.dumps({"messages": [{"role": "user", "content": text} for text in texts]}, ensure_ascii=False).encode(),
        HttpModel("tiny", 8, 8, 0),
    )
    assert ask.chat is not None
    assert [message["content"] for message in ask.chat.messages] == texts
