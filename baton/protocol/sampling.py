"""Defaults of sampling parameters: those of generation_config.json, then Baton's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton.protocol.errors import InvalidRequest, ModelError
from baton.protocol.request import SamplingParams

# The keys of generation_config.json that set request defaults (the same as in vLLM), with their names in Baton.
_KEYS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
_WHOLE_NUMBERS = ("top_k", "max_new_tokens")

SamplingDefaults = dict[str, float]  # Fields of `SamplingParams` by name


def model_defaults(generation: Mapping[str, Any]) -> SamplingDefaults:
    """The request defaults of a generation_config.json.

    `do_sample` false means greedy; true without a temperature means temperature 1. Raises `ModelError` for a value out
    of range.
    """
    defaults = {ours: _number(key, generation[key]) for key, ours in _KEYS.items() if generation.get(key) is not None}
    if generation.get("do_sample") is True:
        defaults.setdefault("temperature", 1.0)
    elif generation.get("do_sample") is False:
        defaults["temperature"] = 0.0
    try:
        with_defaults({}, defaults).validate(vocab_size=1)
    except InvalidRequest as error:
        raise ModelError(f"generation_config.json has an invalid default: {error.message}") from None
    return defaults


def _number(key: str, value: Any) -> float:
    if type(value) in (int, float) and abs(value) < 2**31:
        if key not in _WHOLE_NUMBERS:
            return float(value)
        if value == int(value):
            return max(0, int(value)) if key == "top_k" else int(value)
    raise ModelError(f"generation_config.json gives {value!r} for {key}: it must be a number in range.")


def with_defaults(given: Mapping[str, Any], defaults: Mapping[str, float]) -> SamplingParams:
    """The sampling of a request: the fields it gives, then the model's defaults, then Baton's."""
    return SamplingParams(**{**defaults, **given})


def default_words(defaults: Mapping[str, float], source: str) -> str:
    """The request defaults as a setting to print."""
    sampling = with_defaults({}, defaults)
    words = ["greedy" if sampling.greedy else f"temperature {sampling.temperature:g}"]
    shown = ("top_k", "top_p", "min_p") if not sampling.greedy else ()
    words += [f"{name} {defaults[name]:g}" for name in (*shown, "repetition_penalty") if name in defaults]
    words.append(f"at most {sampling.max_tokens} tokens")
    return f"{', '.join(words)} ({source})"
