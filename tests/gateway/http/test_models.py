"""Bodies about the model and its tokenizer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Model

from baton.gateway.http.models import (
    TokenizerInfo,
    detokenize_body,
    model_body,
    models_body,
    parse_detokenize,
    parse_tokenize,
    tokenize_body,
    tokenizer_info_body,
    version_body,
)
from baton.http.errors import InvalidField, ModelNotFound
from tests.gateway.http.answering import WORDS
from tests.gateway.http.bodies import MODEL


def _body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_the_served_model_is_listed_with_its_context() -> None:
    body = json.loads(models_body(MODEL))
    assert body["object"] == "list"
    (card,) = body["data"]
    assert Model.model_validate(card, strict=True).id == "tiny"
    assert card["max_model_len"] == MODEL.context_tokens
    assert json.loads(model_body("tiny", MODEL)) == card
    with pytest.raises(ModelNotFound, match="`gpt-4` does not exist"):
        model_body("gpt-4", MODEL)


def test_a_text_is_tokenised_with_special_tokens_and_a_conversation_without() -> None:
    ask = parse_tokenize(_body(prompt="Hi"), MODEL)
    assert (ask.text, ask.chat, ask.add_special_tokens) == ("Hi", None, True)
    assert parse_tokenize(_body(prompt="Hi", add_special_tokens=False), MODEL).add_special_tokens is False
    ask = parse_tokenize(_body(messages=[{"role": "user", "content": "Hi"}], add_generation_prompt=False), MODEL)
    assert ask.chat is not None
    assert (ask.chat.add_generation_prompt, ask.add_special_tokens) == (False, False)


def test_tokens_and_texts_come_back() -> None:
    token_ids = WORDS.encode("Hé", False)
    body = json.loads(tokenize_body(token_ids, MODEL, WORDS))
    assert body == {
        "tokens": token_ids,
        "count": 3,
        "max_model_len": MODEL.context_tokens,
        "token_strs": ["H", "\\xc3", "\\xa9"],
    }
    assert parse_detokenize(_body(tokens=token_ids), MODEL) == token_ids
    assert json.loads(detokenize_body(WORDS.decode(token_ids))) == {"prompt": "Hé"}
    assert parse_detokenize(_body(tokens=[]), MODEL) == []


@pytest.mark.parametrize("tokens", [None, "x", [320], [-1], [2**63], ["1"], [True]])
def test_wrong_token_ids_are_refused(tokens: Any) -> None:
    with pytest.raises(InvalidField, match="tokens"):
        parse_detokenize(_body(tokens=tokens), MODEL)


@pytest.mark.parametrize("prompt", [None, 5, ["x"]])
def test_only_a_text_is_tokenised(prompt: Any) -> None:
    with pytest.raises(InvalidField, match="prompt"):
        parse_tokenize(_body(prompt=prompt), MODEL)


def test_the_tokenizer_is_described_as_a_remote_tokenizer_needs_it() -> None:
    body = json.loads(tokenizer_info_body(TokenizerInfo("PreTrainedTokenizerFast", None, "</s>", None, "{{ x }}")))
    assert (body["bos_token"], body["eos_token"], body["chat_template"]) == (None, "</s>", "{{ x }}")
    assert json.loads(version_body("0.1.0")) == {"version": "0.1.0"}
