"""A conversation as the prompt of a request. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation for the chat template.

    A message has `role` and `content` (a text; the text parts of a list are joined by newlines), and what else the
    client gave: `name`, `tool_calls`, `tool_call_id`, `reasoning_content`. `tools` are JSON schemas.
    """

    messages: tuple[dict[str, Any], ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)  # `chat_template_kwargs`: variables
    tools: tuple[dict[str, Any], ...] | None = None
    documents: tuple[dict[str, Any], ...] | None = None
