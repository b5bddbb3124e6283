"""Parses a configuration file. Pure."""

from __future__ import annotations

import difflib
import tomllib
from typing import Any

from pydantic import ValidationError

from baton.config.schema import BatonConfig
from baton.protocol.errors import ConfigError


def parse_config(text: str = "", overrides: dict[str, dict[str, Any]] | None = None) -> BatonConfig:
    """A configuration from TOML text; `overrides` (section → key → value, None: not given) take precedence.

    Raises `ConfigError` with a sentence that names the key, and the most similar key if it is unknown.
    """
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and numbers or nesting too large to parse
        raise ConfigError(f"The configuration is not valid TOML: {error}.") from None
    for section, keys in (overrides or {}).items():
        given = {key: value for key, value in keys.items() if value is not None}
        if given and isinstance(values.get(section, {}), dict):  # Validation names a section that is no table
            values[section] = {**values.get(section, {}), **given}
    try:
        config = BatonConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    if config.pools.prefill + config.pools.decode + config.pools.mixed == 0:
        raise ConfigError("All pools are empty: give at least one worker, such as prefill = 1 and decode = 1.")
    if config.pools.mixed == 0 and config.pools.decode == 0:
        raise ConfigError("No pool can decode: give at least one decode or mixed worker.")
    return config


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    kinds = ("int", "float", "constrained-int", "constrained-float")
    path = [str(part) for part in first["loc"] if part not in kinds and not str(part).startswith("literal")]
    name = ".".join(path)
    if first["type"] == "model_type":
        return f"The configuration's {name} is {first['input']!r}: it is a section, [{name}], with keys of its own."
    if first["type"] != "extra_forbidden":
        given = first["input"] if not isinstance(first["input"], dict) else "a table"
        return f"The configuration's {name} is {given!r}: {first['msg'].lower()}."
    section: Any = BatonConfig
    for part in path[:-1]:
        section = section.model_fields[part].annotation
    known = list(section.model_fields)
    near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.0)
    where = f"section [{'.'.join(path[:-1])}]" if path[:-1] else "file"
    return f"The configuration {where} has no key {path[-1]!r}; did you mean {near[0]!r}?"
