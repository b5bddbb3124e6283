"""Every model family by its architecture in config.json, with its differences from Llama."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from baton.engine.experts_config import ExpertNames
from baton.protocol.errors import ModelError

# Defaults of keys that a config.json may leave out, as in transformers' configuration of the family.
_ANY: dict[str, Any] = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_QWEN = {
    **_ANY,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_QWEN_MOE = {
    **_ANY,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
    "mlp_only_layers": None,
}


def no_window(raw: Mapping[str, Any]) -> int | None:
    """For a family that ignores sliding windows in its config.json."""
    return None


def window_of_all_layers(raw: Mapping[str, Any]) -> int | None:
    """For a family whose layers all use the window in config.json."""
    return int(raw["sliding_window"]) if raw.get("sliding_window") else None


def window_of_some_layers(raw: Mapping[str, Any]) -> int | None:
    """For a family whose config.json lists the layers with a window; raises `ModelError` for unknown layer types."""
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


def window_if_used(raw: Mapping[str, Any]) -> int | None:
    """For a family whose layers all use the window, if its config.json turns that on."""
    return window_of_all_layers(raw) if raw["use_sliding_window"] else None


def window_of_every_second_layer(raw: Mapping[str, Any]) -> int | None:
    """For a family whose even layers use the window where its config.json does not list the layers with one."""
    if raw.get("layer_types") is not None:
        return window_of_some_layers(raw)
    return window_if_used(raw) if raw["max_window_layers"] > 0 else None


@dataclass(frozen=True, slots=True)
class Family:
    """The differences of a family from Llama.

    `left_out` has the defaults of keys that a config.json may leave out. `window` reads the sliding window from a
    config.json with these defaults filled in, None without one. The context served is limited to the window, within
    which sliding-window attention equals full attention.
    """

    left_out: Mapping[str, Any]
    window: Callable[[Mapping[str, Any]], int | None]
    qkv_bias: bool = False  # The projections of queries, keys and values have a bias.
    qk_norm: bool = False  # Each head's queries and keys are normed before they are rotated.
    rope_theta: float = 10_000.0  # The rope's base where config.json has none.
    experts: ExpertNames | None = None  # The names of the experts in a family that has them.


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(_ANY, no_window),
    "MistralForCausalLM": Family({**_ANY, "num_key_value_heads": 8, "sliding_window": 4096}, window_of_all_layers),
    "Qwen2ForCausalLM": Family(_QWEN, window_of_some_layers, qkv_bias=True),
    "Qwen3ForCausalLM": Family({**_QWEN, "head_dim": 128}, window_of_some_layers, qk_norm=True),
    "MixtralForCausalLM": Family(
        {**_ANY, "rms_norm_eps": 1e-5, "num_key_value_heads": 8, "sliding_window": None},
        window_of_all_layers,
        rope_theta=1_000_000.0,
        experts=ExpertNames(
            counts=("num_local_experts",),
            intermediate_size="intermediate_size",
            block="block_sparse_moe",
            projections=("w1", "w3", "w2"),
            every_layer=True,
            normalised=True,
        ),
    ),
    "Qwen2MoeForCausalLM": Family(
        {
            **_QWEN_MOE,
            "num_key_value_heads": 16,
            "intermediate_size": 5632,
            "shared_expert_intermediate_size": 5632,
            "max_window_layers": 28,
            "qkv_bias": True,
        },
        window_of_every_second_layer,
        qkv_bias=True,
        experts=ExpertNames(counts=("num_experts",), shared_intermediate_size="shared_expert_intermediate_size"),
    ),
    "Qwen3MoeForCausalLM": Family(
        {**_QWEN_MOE, "num_key_value_heads": 4, "intermediate_size": 6144},
        window_if_used,
        qk_norm=True,
        experts=ExpertNames(),
    ),
}
