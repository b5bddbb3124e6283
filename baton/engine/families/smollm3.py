"""SmolLM3: some layers do not rotate queries and keys; these may have a sliding window."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from baton.engine.families.family import DEFAULTS, Family, has_sliding_layer
from baton.protocol.errors import ModelError


def _unrotated(raw: Mapping[str, Any]) -> Collection[int]:
    """The layers with a 0 in `no_rope_layers`, or every fourth one."""
    layers, rotated = raw["num_hidden_layers"], raw.get("no_rope_layers")
    if rotated is None:
        interval = raw["no_rope_layer_interval"]
        return range(interval - 1, layers, interval)
    if len(rotated) < layers:
        raise ModelError(f"config.json has {len(rotated)} numbers in no_rope_layers for {layers} layers.")
    return frozenset(index for index in range(layers) if not rotated[index])


def _window(raw: Mapping[str, Any]) -> int | None:
    """The window of the layers that config.json lists, or of those that do not rotate."""
    size, kinds = raw.get("sliding_window"), raw.get("layer_types")
    slides = bool(_unrotated(raw)) if kinds is None else has_sliding_layer(kinds)
    return int(size) if size and raw["use_sliding_window"] and slides else None


FAMILY = Family(
    {
        **DEFAULTS,
        "tie_word_embeddings": True,
        "num_key_value_heads": 4,
        "no_rope_layer_interval": 4,
        "use_sliding_window": False,
    },
    _window,
    attention_bias=True,
    mlp_bias=True,
    rope_theta=2_000_000.0,
    unrotated_layers=_unrotated,
)
