"""Reads the message of a conversation."""

from __future__ import annotations

from typing import Any

import orjson

from baton.gateway.chat_prompt import ChatPrompt
from baton.protocol.errors import InvalidRequest
from baton.protocol.v1 import inference_pb2

MAX_MESSAGES = 4096


def read_conversation(message: inference_pb2.Conversation) -> ChatPrompt:
    """The conversation of a message; raises `InvalidRequest` naming the field."""
    if not 1 <= len(message.messages) <= MAX_MESSAGES:
        raise InvalidRequest(
            f"The conversation has {len(message.messages)} messages: send 1 to {MAX_MESSAGES} of them."
        )
    continued = message.continue_final_message
    prompted = message.add_generation_prompt if message.HasField("add_generation_prompt") else not continued
    if continued and prompted:
        raise InvalidRequest("continue_final_message and add_generation_prompt are both true: only one may be.")
    return ChatPrompt(
        tuple(_chat_message(each, f"messages[{at}]") for at, each in enumerate(message.messages)),
        prompted,
        continued,
        _object(message.template_options, "template_options"),
        _objects(message.tools, "tools"),
        _objects(message.documents, "documents"),
    )


def _chat_message(message: inference_pb2.ChatMessage, name: str) -> dict[str, Any]:
    if not message.role:
        raise InvalidRequest(f"{name}.role is empty: it is system, user, assistant or another role of the template.")
    return {"role": message.role, "content": message.content, **_object(message.fields, f"{name}.fields")}


def _object(text: str, name: str) -> dict[str, Any]:
    value = _parsed(text, name) if text else {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} is not a JSON object.")
    return value


def _objects(text: str, name: str) -> tuple[dict[str, Any], ...] | None:
    if not text:
        return None
    value = _parsed(text, name)
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise InvalidRequest(f"{name} is not a JSON list of objects.")
    return tuple(value)


def _parsed(text: str, name: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{name} is not valid JSON: {error.args[0][:200]}.") from None
