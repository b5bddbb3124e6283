"""Bodies as bytes: what is no JSON object is refused, and texts are read as they are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.gateway.http.ask import HttpModel
from baton.gateway.http.chat import parse_chat
from baton.gateway.http.completions import parse_completion
from baton.gateway.http.errors import BodyTooLarge
from baton.gateway.http.parameters import MAX_BODY_BYTES
from baton.protocol.errors import InvalidRequest
from tests.gateway.http.bodies import MODEL

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
