"""Finds the chat templates of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from baton.gateway.chat_template import ChatTemplate
from baton.protocol.errors import ConfigError, InvalidRequest, ModelError

_WRONG = (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError)
_SPECIAL_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def read_chat_template(folder: Path, given: str = "") -> ChatTemplate | None:
    """The chat template `given` as a text, else that of a checkpoint; None for a model without one.

    It is in chat_template.jinja and additional_chat_templates/NAME.jinja, else in tokenizer_config.json. Raises
    `ConfigError` for a given template with invalid syntax, `ModelError` for files that cannot be read.
    """
    try:
        config = _json(folder / "tokenizer_config.json")
        sources = {"default": given} if given else _files(folder) or _named(config.get("chat_template"))
        special = config if "added_tokens_decoder" in config else config | _json(folder / "special_tokens_map.json")
        tokens = {name: _text(special[name]) for name in _SPECIAL_TOKENS if special.get(name) is not None}
    except _WRONG as error:
        raise ModelError(f"The chat template in {folder} cannot be read: {error}.") from None
    if not sources:
        return None
    template = ChatTemplate(sources, tokens)
    if given:
        try:
            template.compiled(given)
        except InvalidRequest as error:
            raise ConfigError(f"model.chat_template: {error}") from None
    return template


def _files(folder: Path) -> dict[str, str]:
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    return {name: path.read_text() for name, path in files.items()}


def _named(value: Any) -> dict[str, str]:
    """The templates in tokenizer_config.json: a text, or a list of names and texts."""
    if not value:
        return {}
    named = {"default": value} if isinstance(value, str) else {str(each["name"]): each["template"] for each in value}
    if not all(isinstance(template, str) for template in named.values()):
        raise TypeError("chat_template in tokenizer_config.json is not a text")
    return named


def _text(token: Any) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _json(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text()) if path.is_file() else {}
    if not isinstance(values, dict):
        raise TypeError(f"{path.name} is not an object")
    return values
