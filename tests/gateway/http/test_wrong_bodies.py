"""Wrong bodies of completions and chats are refused in a sentence that names the field."""

from __future__ import annotations

from typing import Any

import pytest

from baton.gateway.http.chat import parse_chat
from baton.gateway.http.common_fields import MAX_SEQUENCES
from baton.gateway.http.completions import parse_completion
from baton.http.errors import InvalidField
from baton.http.response import MAX_BODY_BYTES
from baton.protocol.errors import InvalidRequest
from tests.gateway.http.bodies import MODEL, parse

WRONG: dict[str, tuple[Any, ...]] = {
    "temperature": ("1", True, [], -0.1, 1e300, 101),
    "top_p": (0, 1.1, "x"),
    "top_k": (1.5, -2, 2**31, "1", 2**64),
    "min_p": (-0.1, 2),
    "seed": (2**63, "7", 0.5),
    "min_tokens": (-1, True),
    "stop": ("", 1, [1], ["x" * 300], ["a"] * 17, {"a": 1}),
    "stop_token_ids": ([320], [-1], ["1"], 5, [True], [1] * 2000),
    "ignore_eos": (1, "true"),
    "n": (0, -1, 1.5, MAX_SEQUENCES + 1, "2"),
    "stream": ("yes", 1),
    "stream_options": (True, []),
    "model": (5, ["tiny"]),
    "priority": (2**31, 0.5),
    "baton": ([], "x"),
    "prompt_logprobs": (21, -1, True),
    "logprobs": (21, -1, "3", 1.5, [1]),
    "response_format": ({"type": "json_object"}, "text"),
    "guided_json": ({"type": "object"},),
    "use_beam_search": (True,),
    "skip_special_tokens": (False,),
    "add_special_tokens": ("x",),
    "logit_bias": ({"a": 1}, {"1": "x"}, {"1": 101}, [1], {"-1": 1}, {"320": 1}, {"²": 1}, {"9" * 40: 1}),
}
WRONG_COMPLETION: dict[str, tuple[Any, ...]] = {
    "prompt": (
        None,
        5,
        [],
        {},
        [[]],
        [None],
        [1, "a"],
        [True],
        [[1.5]],
        [320],
        [[5], [-1, 5]],
        ["a"] * (MAX_SEQUENCES + 1),
    ),
    "max_tokens": (0, -1, "16", 2**31, 1.5),
    "suffix": ("end",),
    "best_of": (0, "x", MAX_SEQUENCES + 1),
    "echo": ("x",),
}
WRONG_CHAT: dict[str, tuple[Any, ...]] = {
    "messages": (None, [], "Hi", {}, ["Hi"]),
    "max_tokens": (0, "x"),
    "max_completion_tokens": (0, 2**40),
    "top_logprobs": (1, 21, True),
    "tools": ([{"type": "function"}],),
    "tool_choice": ("required", {"type": "function"}),
    "best_of": (2,),
    "echo": (True,),
    "chat_template": ("{{ 1 }}",),
    "chat_template_kwargs": ([], "x"),
    "modalities": (["text", "audio"],),
    "reasoning_effort": (5,),
}
CASES = [
    (kind, name, value)
    for kind, own in (("completion", WRONG_COMPLETION), ("chat", WRONG_CHAT))
    for name, values in (WRONG | own).items()
    for value in values
]


@pytest.mark.parametrize(("kind", "name", "value"), CASES, ids=lambda value: str(value)[:20])
def test_a_wrong_value_is_refused_in_a_sentence_that_names_the_field(kind: str, name: str, value: Any) -> None:
    with pytest.raises(InvalidField, match=rf"{name}\b|[Ss]top (string|token)") as refused:
        parse(kind, **{name: value})
    assert refused.value.field.partition("[")[0] in (name, f"{name}.1")
    assert refused.value.message.endswith((".", "accepted."))
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"content": "x"}, "messages[0].role"),
        ({"role": "usr", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": ["x"]}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": "x", "name": 5}, "messages[0].name"),
        ({"role": "assistant", "tool_calls": {}}, "messages[0].tool_calls"),
    ],
)
def test_a_wrong_message_is_named_by_its_place(message: Any, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        parse("chat", messages=[message])
    assert refused.value.field == field
    assert refused.value.message.startswith(field)


BAD_JSON = {
    "nothing": (b"", "not valid JSON"),
    "half": (b'{"prompt": "Hi"', "not valid JSON"),
    "a list": (b"[]", "a list of 0: it must be a JSON object"),
    "NaN": (b'{"prompt": "Hi", "temperature": NaN}', "not valid JSON"),
    "infinity": (b'{"prompt": "Hi", "temperature": 1e999}', "not valid JSON"),
    "not UTF-8": (b'{"prompt": "\xff"}', "not valid JSON in UTF-8"),
    "half a surrogate pair": (b'{"prompt": "\\ud800"}', "not valid JSON"),
    "deep": (b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}", "depth"),
    "a key twice": (b'{"prompt": "Hi", "n": 1, "n": 2}', "n is given twice"),
    "an escaped key twice": (b'{"prompt": "Hi", "n": 1, "\\u006e" : 2}', "n is given twice"),
    "a key twice inside": (b'{"prompt": "Hi", "x": [{"y": 1, "y": 2}]}', "y is given twice"),
    "deep objects": (b'{"prompt": "Hi", "x": ' + b'{"a":' * 100 + b"1" + b"}" * 101, "x is nested more than 64 deep"),
    "too long": (b" " * (MAX_BODY_BYTES + 1), f"at most {MAX_BODY_BYTES}"),
}


@pytest.mark.parametrize(("body", "words"), BAD_JSON.values(), ids=BAD_JSON)
def test_bytes_that_are_no_json_object_are_refused_in_a_sentence(body: bytes, words: str) -> None:
    for parser in (parse_completion, parse_chat):
        with pytest.raises(InvalidRequest, match=words):
            parser(body, MODEL)
