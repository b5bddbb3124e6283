"""What a checkpoint's files say about its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from baton.gateway.http.models import TokenizerInfo
from baton.protocol.errors import ModelError


def read_tokenizer_info(folder: Path) -> TokenizerInfo:
    """The special tokens and the chat template of a checkpoint, as far as it names them; raises `ModelError`."""
    config: dict[str, Any] = {}
    path = folder / "tokenizer_config.json"
    try:
        if path.is_file():
            config = dict(json.loads(path.read_bytes()))
        template = folder / "chat_template.jinja"
        chat_template = template.read_text() if template.is_file() else config.get("chat_template")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from None
    return TokenizerInfo(
        str(config.get("tokenizer_class", "")),
        _text(config.get("bos_token")),
        _text(config.get("eos_token")),
        _text(config.get("pad_token")),
        chat_template if isinstance(chat_template, str) else None,
    )


def _text(token: Any) -> str | None:
    """A token, which may be an object with its text as `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
