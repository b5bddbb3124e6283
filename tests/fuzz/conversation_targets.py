"""Conversations of gRPC clients: what is read can be rendered, or is refused by the template."""

from __future__ import annotations

import random
from typing import Any

from baton.gateway.chat_template import ChatTemplate
from baton.gateway.conversation_message import read_conversation
from baton.gateway.grpc_service import _parse
from baton.protocol.v1 import inference_pb2
from tests.fuzz.inputs import fill, json_bytes, mutated_bytes, mutated_json
from tests.fuzz.target import Target
from tests.gateway.chat_templates import CHATML, LLAMA_3

LIMIT_BYTES = 1 << 16
TEMPLATES = [ChatTemplate({"default": source}, {"bos_token": "<s>"}) for source in (CHATML, LLAMA_3)]
FIELDS: dict[str, Any] = {
    "content": [{"type": "text", "text": "Hi"}],
    "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
DOCUMENTS = [{"title": "t", "text": "x"}]
ROLES = ("system", "user", "assistant", "tool", "x")


def _text(rng: random.Random, value: Any) -> str:
    """The value as JSON, whole or changed, or nothing."""
    if rng.random() < 0.5:
        return ""
    return json_bytes(mutated_json(rng, value) if rng.random() < 0.5 else value).decode(errors="replace")


def _conversation(rng: random.Random) -> bytes:
    message = inference_pb2.Conversation()
    if rng.random() < 0.2:
        fill(rng, message)
    for _ in range(rng.choice((0, 1, 2, 5))):
        message.messages.add(role=rng.choice(ROLES), content="Hi" * rng.randrange(3), fields=_text(rng, FIELDS))
    message.template_options = _text(rng, {"enable_thinking": False, "messages": []})
    message.tools, message.documents = _text(rng, TOOLS), _text(rng, DOCUMENTS)
    message.continue_final_message = rng.random() < 0.3
    data: bytes = message.SerializeToString(deterministic=True)
    return mutated_bytes(rng, data) if rng.random() < 0.2 else data


def _render(data: bytes) -> None:
    chat = read_conversation(_parse(inference_pb2.Conversation, data))
    for template in TEMPLATES:
        assert len(template.render(chat, LIMIT_BYTES).encode(errors="replace")) <= LIMIT_BYTES


CONVERSATION_TARGETS = [Target("conversations", _conversation, _render)]
