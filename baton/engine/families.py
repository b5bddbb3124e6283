"""Every model family by the architecture's name in config.json: what tells it from a plain Llama."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from baton.protocol.errors import ModelError

# What a key means that config.json leaves out, as in transformers' configuration of the family.
_ANY: dict[str, Any] = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_QWEN = {
    **_ANY,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def no_window(raw: Mapping[str, Any]) -> int | None:
    """For a family without sliding windows, whatever its config.json says."""
    return None


def window_of_all_layers(raw: Mapping[str, Any]) -> int | None:
    """For a family whose layers all use the window that is given."""
    return int(raw["sliding_window"]) if raw.get("sliding_window") else None


def window_of_some_layers(raw: Mapping[str, Any]) -> int | None:
    """For a family that says which layers use the window. Raises `ModelError` for a layer of another kind."""
    window, kinds = raw.get("sliding_window"), raw.get("layer_types")
    if not window:
        return None
    if kinds is None:
        slides = raw["use_sliding_window"] and raw["max_window_layers"] < raw["num_hidden_layers"]
    else:
        unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
        if unknown:
            raise ModelError(f"Layers with {unknown[0]} are not supported, only full_attention and sliding_attention.")
        slides = "sliding_attention" in kinds
    return int(window) if raw["use_sliding_window"] and slides else None


@dataclass(frozen=True, slots=True)
class Family:
    """`left_out`: values of keys that a config.json may leave out.

    `window` reads from the config.json (with `left_out` filled in) the sliding window that some layer uses. Within it
    every position sees all others; beyond it the model is not served.
    """

    left_out: Mapping[str, Any]
    window: Callable[[Mapping[str, Any]], int | None]
    qkv_bias: bool = False  # the projections of queries, keys and values have a bias
    qk_norm: bool = False  # each head's queries and keys are normed before they are rotated


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(_ANY, no_window),
    "MistralForCausalLM": Family({**_ANY, "num_key_value_heads": 8, "sliding_window": 4096}, window_of_all_layers),
    "Qwen2ForCausalLM": Family(_QWEN, window_of_some_layers, qkv_bias=True),
    "Qwen3ForCausalLM": Family({**_QWEN, "head_dim": 128}, window_of_some_layers, qk_norm=True),
}
