"""Bodies of clients, and the model that they are for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from baton.gateway.http.ask import Ask, HttpModel
from baton.gateway.http.chat import parse_chat
from baton.gateway.http.completions import parse_completion

MODEL = HttpModel("tiny", context_tokens=64, vocab_size=320, created_s=7)
PARSERS: dict[str, Callable[..., Ask]] = {"completion": parse_completion, "chat": parse_chat}
SMALLEST: dict[str, dict[str, Any]] = {
    "completion": {"prompt": "Hi"},
    "chat": {"messages": [{"role": "user", "content": "Hi"}]},
}


def parse(kind: str, served: HttpModel = MODEL, /, **fields: Any) -> Ask:
    """The smallest body of a kind with these fields, parsed."""
    return PARSERS[kind](json.dumps({**SMALLEST[kind], **fields}).encode(), served)
