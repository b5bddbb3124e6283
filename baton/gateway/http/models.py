"""Bodies about the served model and its tokenizer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from baton.gateway.chat_prompt import ChatPrompt
from baton.gateway.http.ask import HttpModel, Words
from baton.gateway.http.chat import read_conversation
from baton.gateway.http.common_fields import read_model
from baton.gateway.http.parameters import Fields, parse_object, short
from baton.gateway.http.token_words import TokenWords
from baton.http.errors import InvalidField, ModelNotFound

MAX_IDS = 1 << 20  # Of one /detokenize


@dataclass(frozen=True, slots=True)
class TokenizeAsk:
    """A body of /tokenize: a text or a conversation."""

    text: str | None
    chat: ChatPrompt | None
    add_special_tokens: bool
    with_strings: bool  # Also the tokens' names


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """A checkpoint's special tokens and template, as texts."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None


def models_body(model: HttpModel) -> bytes:
    """The body of /v1/models."""
    return orjson.dumps({"object": "list", "data": [_card(model)]})


def model_body(name: str, model: HttpModel) -> bytes:
    """The body of /v1/models/{name}; raises `ModelNotFound`."""
    if name != model.name:
        raise ModelNotFound(f"The model `{short(name)}` does not exist; this cluster serves `{model.name}`.")
    return orjson.dumps(_card(model))


def _card(model: HttpModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "baton",
        "root": model.name,
        "parent": None,
        "max_model_len": model.context_tokens,
    }


def version_body(version: str) -> bytes:
    """The body of /version."""
    return orjson.dumps({"version": version})


def parse_tokenize(body: bytes, model: HttpModel) -> TokenizeAsk:
    """The checked content of a body of /tokenize; raises `InvalidRequest` naming the field, and `ModelNotFound`."""
    fields = Fields(parse_object(body))
    read_model(fields, model)
    with_strings = fields.flag("return_token_strs", False)
    if fields.get("messages") is not None:
        return TokenizeAsk(None, read_conversation(fields), fields.flag("add_special_tokens", False), with_strings)
    text = fields.text("prompt")
    if text is None:
        raise fields.error("prompt", "a text")
    return TokenizeAsk(text, None, fields.flag("add_special_tokens", True), with_strings)


def tokenize_body(token_ids: Sequence[int], model: HttpModel, words: Words | None = None) -> bytes:
    """The answer to /tokenize; with `words` it has the tokens' names."""
    strings = None if words is None else [*map(TokenWords(words).name, token_ids)]
    return orjson.dumps(
        {
            "count": len(token_ids),
            "max_model_len": model.context_tokens,
            "tokens": list(token_ids),
            "token_strs": strings,
        }
    )


def parse_detokenize(body: bytes, model: HttpModel) -> list[int]:
    """The token ids of a body of /detokenize; raises `InvalidRequest` naming the field, and `ModelNotFound`."""
    fields = Fields(parse_object(body))
    read_model(fields, model)
    token_ids: list[int] | None = fields.list_of("tokens", int, "token ids", MAX_IDS)
    if token_ids is None:
        raise fields.error("tokens", "a list of token ids")
    wrong = next((token_id for token_id in token_ids if not 0 <= token_id < model.vocab_size), None)
    if wrong is not None:
        raise InvalidField(f"tokens has the id {wrong}, outside the vocabulary of {model.vocab_size}.", "tokens")
    return token_ids


def detokenize_body(text: str) -> bytes:
    """The answer to /detokenize."""
    return orjson.dumps({"prompt": text})


def tokenizer_info_body(info: TokenizerInfo) -> bytes:
    """The body of /tokenizer_info."""
    return orjson.dumps(asdict(info))
