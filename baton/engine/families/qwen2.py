"""Qwen2 and Qwen2.5: queries, keys and values have a bias; some layers may have a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton.engine.families.family import DEFAULTS, Family, has_sliding_layer

LEFT_OUT = {
    **DEFAULTS,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def window(raw: Mapping[str, Any]) -> int | None:
    """The window of the layers that config.json lists, or of those from `max_window_layers` on."""
    size, kinds = raw.get("sliding_window"), raw.get("layer_types")
    if not size:
        return None
    slides = raw["max_window_layers"] < raw["num_hidden_layers"] if kinds is None else has_sliding_layer(kinds)
    return int(size) if raw["use_sliding_window"] and slides else None


FAMILY = Family(LEFT_OUT, window, qkv_bias=True)
