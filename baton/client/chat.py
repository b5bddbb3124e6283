"""A conversation as a prompt, and its message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.protocol.v1 import inference_pb2


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, from which the model's chat template makes the prompt.

        client.stream(baton.Chat([{"role": "user", "content": "What is a relay race?"}]), max_tokens=80)

    A message has `role` and `content`, and other fields that the template reads, such as `tool_calls`. With
    `continue_final_message` the answer continues the final message; `template_options` are variables of the template.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool | None = None  # None: unless the final message is continued
    continue_final_message: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)


def conversation_message(chat: Chat) -> inference_pb2.Conversation:
    """The message of a conversation; raises `TypeError` and `ValueError` for values that JSON does not have."""
    return inference_pb2.Conversation(
        messages=[_message(message) for message in chat.messages],
        add_generation_prompt=chat.add_generation_prompt,
        continue_final_message=chat.continue_final_message,
        template_options=_json(dict(chat.template_options)) if chat.template_options else "",
        tools="" if chat.tools is None else _json(chat.tools),
        documents="" if chat.documents is None else _json(chat.documents),
    )


def _message(message: Mapping[str, Any]) -> inference_pb2.ChatMessage:
    plain = {name: value for name in ("role", "content") if isinstance(value := message.get(name), str)}
    other = {name: value for name, value in message.items() if name not in plain and value is not None}
    return inference_pb2.ChatMessage(**plain, fields=_json(other) if other else "")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
