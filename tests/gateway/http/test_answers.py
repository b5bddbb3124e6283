"""Answers as streams and as whole bodies: what OpenAI's own types and client read from them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from baton.gateway.http.answers import renderer
from baton.gateway.http.token_words import LOWEST, TokenWords, top_by_name
from baton.protocol.request import FinishReason
from tests.gateway.http.answering import WORDS, answer, client, events, output_of
from tests.gateway.http.bodies import parse

each_kind = pytest.mark.parametrize("kind", ["completion", "chat"])
HELLO = WORDS.encode("Héllo €!", False)
MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]


def _logprobs(kind: str, count: int) -> dict[str, Any]:
    return {"logprobs": count} if kind == "completion" else {"logprobs": True, "top_logprobs": count}


def _check_event(kind: str, event: dict[str, Any]) -> None:
    """An event has OpenAI's type; that of completions is also the whole body's, which always has a reason."""
    if kind == "chat":
        assert ChatCompletionChunk.model_validate(event, strict=True).object == "chat.completion.chunk"
        return
    choices = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in event["choices"]]
    _check_completion({**event, "choices": choices})


def _check_completion(body: dict[str, Any]) -> None:
    """A body has OpenAI's type, but that an echo's first token has no log-probability, as OpenAI has it too."""
    body = json.loads(json.dumps(body))
    for choice in body["choices"]:
        logprobs = choice["logprobs"]
        if logprobs is not None and logprobs["tokens"] and logprobs["token_logprobs"][0] is None:
            logprobs["token_logprobs"][0], logprobs["top_logprobs"][0] = 0.0, {}
    assert Completion.model_validate(body, strict=True).object == "text_completion"


def _joined(kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """A choice as the events of a stream give it, in the form that it has in a whole body."""
    *before, last = choices
    assert last["finish_reason"] is not None
    assert all(choice["finish_reason"] is None for choice in before)
    parts = [choice["logprobs"] for choice in choices if choice["logprobs"] is not None]
    joined: dict[str, Any] = {"index": last["index"], "finish_reason": last["finish_reason"], "logprobs": None}
    if parts:
        joined["logprobs"] = {
            name: None if parts[0][name] is None else [item for part in parts for item in part[name]]
            for name in parts[0]
        }
    if kind == "completion":
        joined["text"] = "".join(choice["text"] for choice in choices)
    else:
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert last["delta"] == {}
        content = "".join(choice["delta"]["content"] for choice in before)
        joined["message"] = {"role": "assistant", "content": content, "refusal": None}
    return joined


@st.composite
def _asked(draw: st.DrawFn, kind: str) -> tuple[dict[str, Any], list[list[int]]]:
    """Fields of a body, and the output of each of its sequences."""
    fields: dict[str, Any] = {"n": draw(st.integers(1, 3)), "return_tokens_as_token_ids": draw(st.booleans())}
    if draw(st.booleans()):
        fields |= _logprobs(kind, draw(st.integers(0, 3)))
    if kind == "completion":
        fields["prompt"] = draw(st.sampled_from(["Hé", ["a", "b"], [5, 6], [[5, 200], [7]]]))
        fields["echo"] = draw(st.booleans())
    one = st.lists(st.integers(0, 319), min_size=1, max_size=8) | st.just(HELLO)
    num = parse(kind, **fields).num_sequences
    return fields, draw(st.lists(one, min_size=num, max_size=num))


@each_kind
@given(data=st.data(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=100, database=None)
def test_a_stream_says_the_same_as_the_whole_body(kind: str, data: st.DataObject, seed: int) -> None:
    fields, outputs = data.draw(_asked(kind))
    whole = json.loads(answer(parse(kind, **fields), outputs, random.Random(seed)))
    if kind == "chat":
        ChatCompletion.model_validate(whole, strict=True)
    else:
        _check_completion(whole)
    continuous = data.draw(st.booleans())
    options = {"include_usage": True, "continuous_usage_stats": continuous}
    sent = events(answer(parse(kind, stream=True, stream_options=options, **fields), outputs, random.Random(seed)))
    for event in sent:
        _check_event(kind, event)
        assert (event["id"], event["created"], event["model"]) == ("id-1", 7, "tiny")
    *chunks, last = sent
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    by_index: dict[int, list[dict[str, Any]]] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        by_index.setdefault(choice["index"], []).append(choice)
    assert [_joined(kind, by_index[index]) for index in range(len(outputs))] == whole["choices"]
    counts = [chunk["usage"]["completion_tokens"] if continuous else chunk["usage"] for chunk in chunks]
    if continuous:
        assert counts == sorted(counts)
        assert counts[-1] == whole["usage"]["completion_tokens"] == sum(map(len, outputs))
    else:
        assert set(counts) == {None}


@each_kind
def test_a_stream_has_no_usage_unasked(kind: str) -> None:
    for event in events(answer(parse(kind, stream=True), [HELLO], random.Random(0))):
        assert "usage" not in event
        assert len(event["choices"]) == 1


@each_kind
def test_nothing_is_sent_before_the_first_token(kind: str) -> None:
    ask = parse(kind, stream=True)
    tokens, end = output_of(ask, [5], HELLO, FinishReason.LENGTH)
    written = renderer(ask, "id", 7, [[5]], WORDS)
    assert written.write(0, [], None) == b""
    first = written.write(0, tokens[:1], None)
    assert first.count(b"\n\n") == (2 if kind == "chat" else 1)
    assert b'"H"' in first
    assert b'"length"' in written.write(0, tokens[1:], end)


def test_the_clients_library_reads_completions() -> None:
    openai = client(lambda ask: [HELLO] * ask.num_sequences, random.Random(0))
    whole = openai.completions.create(model="tiny", prompt=["Hi", "Ho"], n=2, logprobs=1)
    assert [choice.text for choice in whole.choices] == ["Héllo €!"] * 4
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (4, 4 * len(HELLO))
    stream = openai.completions.create(model="tiny", prompt="Hi", stream=True)
    assert "".join(event.choices[0].text for event in stream) == "Héllo €!"


def test_the_clients_library_reads_chats() -> None:
    openai = client(lambda ask: [HELLO] * ask.num_sequences, random.Random(0))
    whole = openai.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2)
    (choice,) = whole.choices
    assert (choice.message.content, choice.finish_reason) == ("Héllo €!", "stop")
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    assert b"".join(bytes(entry.bytes or []) for entry in entries).decode() == "Héllo €!"
    assert [entry.token for entry in entries][:4] == ["H", "\\xc3", "\\xa9", "l"]
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    with openai.chat.completions.stream(
        model="tiny", messages=MESSAGES, stream_options={"include_usage": True}
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Héllo €!"
    assert final.usage is not None
    assert final.usage.completion_tokens == len(HELLO)


def test_minus_infinity_is_a_number() -> None:
    body = json.loads(answer(parse("chat", logprobs=True, top_logprobs=3), [HELLO], random.Random(0)))
    assert body["choices"][0]["logprobs"]["content"][0]["top_logprobs"][2] == {
        "token": "<pad>",
        "bytes": list(b"<pad>"),
        "logprob": LOWEST,
    }
    body = json.loads(answer(parse("completion", logprobs=3), [HELLO], random.Random(0)))
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"][0] == {"H": 0.0, WORDS.token_bytes(70).decode(): -20.0, "<pad>": LOWEST}
    assert logprobs["tokens"][:3] == ["H", "bytes:\\xc3", "bytes:\\xa9"]


def test_of_tokens_with_the_same_name_the_likeliest_counts() -> None:
    names = TokenWords(WORDS)
    assert WORDS.token_bytes(310) == WORDS.token_bytes(311) == b""
    assert top_by_name(names, 311, (-3.0, ((70, -0.5), (310, -1.0), (71, -2.0))), shown=2) == {
        WORDS.token_bytes(70).decode(): -0.5,
        "": -1.0,
    }


def test_an_echo_begins_with_the_prompt_and_its_log_probabilities() -> None:
    ask = parse("completion", prompt="Hé 中", echo=True, logprobs=1)
    (choice,) = json.loads(answer(ask, [HELLO], random.Random(0)))["choices"]
    logprobs, text = choice["logprobs"], choice["text"]
    num_prompt = len("Hé 中".encode())
    assert text == "Hé 中Héllo €!"
    assert logprobs["tokens"][0] == "H"
    assert logprobs["token_logprobs"][:3] == [None, -0.25, -0.5]
    assert logprobs["top_logprobs"][:2] == [None, {"bytes:\\xc3": -0.25}]
    assert logprobs["token_logprobs"][num_prompt] == 0.0
    assert {len(values) for values in logprobs.values()} == {num_prompt + len(HELLO)}
    for name, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert name.startswith("bytes:") or text[offset] == name
    assert text[logprobs["text_offset"][num_prompt] :] == "Héllo €!"


def test_a_prompt_can_be_scored_without_output() -> None:
    """So lm-eval asks: `echo` with `max_tokens` 0."""
    ask = parse("completion", prompt="Hi", echo=True, max_tokens=0)
    for streamed in (False, True):
        half = HELLO[1:2]  # It would be shown as a replacement character
        sent = answer(replace(ask, stream=streamed, include_usage=streamed), [half], random.Random(0))
        found = events(sent) if streamed else [json.loads(sent)]
        assert "".join(choice["text"] for event in found for choice in event["choices"]) == "Hi"
        assert found[-1]["usage"]["completion_tokens"] == 0


def test_the_best_sequences_are_the_likeliest_per_token() -> None:
    ask = parse("completion", prompt=["a", "b"], n=2, best_of=3)
    outputs = [[70], [71, 71], [72, 72, 72], [73] * 3, [74], [75] * 2]  # The log-probability falls with every token
    body = json.loads(answer(ask, outputs, random.Random(0)))
    texts = [WORDS.decode(token_ids) for token_ids in outputs]
    assert [choice["text"] for choice in body["choices"]] == [texts[0], texts[1], texts[4], texts[5]]
    assert body["usage"]["completion_tokens"] == 12
    assert all(choice["logprobs"] is None for choice in body["choices"])


@each_kind
def test_prompt_logprobs_have_vllms_form(kind: str) -> None:
    ask = parse(kind, prompt_logprobs=1)
    written = renderer(ask, "id", 7, [[70, 71]], WORDS)
    written.prompt_logprobs(0, [(None, ()), (-3.0, ((72, -0.5), (73, -0.6)))])
    written.write(0, *output_of(ask, [70, 71], HELLO))
    body = json.loads(written.close())
    at_two = {
        "72": {"logprob": -0.5, "rank": 1, "decoded_token": WORDS.token_bytes(72).decode()},
        "71": {"logprob": -3.0, "rank": None, "decoded_token": WORDS.token_bytes(71).decode()},
    }
    assert (body if kind == "chat" else body["choices"][0])["prompt_logprobs"] == [None, at_two]


@each_kind
def test_token_ids_are_sent_on_request(kind: str) -> None:
    for streamed in (False, True):
        sent = answer(parse(kind, stream=streamed, return_token_ids=True), [HELLO], random.Random(1))
        found = events(sent) if streamed else [json.loads(sent)]
        choices = [choice for event in found for choice in event["choices"]]
        assert [token_id for choice in choices for token_id in choice.get("token_ids", [])] == HELLO
        first = found[0] if kind == "chat" else choices[0]
        assert first["prompt_token_ids"] == WORDS.encode("Hi", False)


def test_cached_tokens_are_those_that_no_sequence_had_to_compute() -> None:
    ask = parse("completion", prompt=["a", "b"], n=2)
    written = renderer(ask, "id", 7, [[5] * 8, [6] * 8], WORDS)
    for sequence, cached in enumerate((4, 8, 0, 8)):
        tokens, end = output_of(ask, [5], [70])
        written.write(sequence, tokens, replace(end, cached_tokens=cached))
    usage = json.loads(written.close())["usage"]
    assert usage == {
        "prompt_tokens": 16,
        "completion_tokens": 4,
        "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
