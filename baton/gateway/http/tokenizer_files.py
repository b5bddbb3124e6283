"""What a checkpoint's files say about its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from baton.gateway.chat_template import ChatTemplate
from baton.gateway.http.models import TokenizerInfo
from baton.protocol.errors import InvalidRequest, ModelError


def read_tokenizer_info(folder: Path, template: ChatTemplate | None) -> TokenizerInfo:
    """The special tokens of a checkpoint, as far as it names them, and its chat template; raises `ModelError`."""
    config: dict[str, Any] = {}
    path = folder / "tokenizer_config.json"
    try:
        if path.is_file():
            config = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from None
    return TokenizerInfo(
        str(config.get("tokenizer_class", "")),
        _text(config.get("bos_token")),
        _text(config.get("eos_token")),
        _text(config.get("pad_token")),
        _source(template),
    )


def _source(template: ChatTemplate | None) -> str | None:
    try:
        return None if template is None else template.source()
    except InvalidRequest:  # It has named templates, and no default one
        return None


def _text(token: Any) -> str | None:
    """A token, which may be an object with its text as `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
