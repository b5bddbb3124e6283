"""The differences of a model family from Llama; each family states its own in a file of its name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from baton.engine.experts_config import ExpertNames
from baton.protocol.errors import ModelError

# Defaults of keys that a config.json may leave out, as in transformers' configuration of most families.
DEFAULTS: dict[str, Any] = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
QkNorm = Literal["head", "projection"]
ROPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class Scales:
    """Constant factors of a model's values."""

    embedding: float = 1.0
    residual: float = 1.0  # Of the outputs of attention and MLP, before they are added to the residual.
    attention: float | None = None  # Of the products of queries and keys; None: 1/sqrt(head_dim).
    logits: float = 1.0


def no_window(raw: Mapping[str, Any]) -> int | None:
    """For a family that ignores sliding windows in its config.json."""
    return None


def window_of_all_layers(raw: Mapping[str, Any]) -> int | None:
    """For a family whose layers all use the window in config.json."""
    return int(raw["sliding_window"]) if raw.get("sliding_window") else None


def has_sliding_layer(kinds: Sequence[str]) -> bool:
    """Whether one of these `layer_types` slides; raises `ModelError` for unknown types."""
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise ModelError(f"Layers with {unknown[0]} are not supported, only full_attention and sliding_attention.")
    return "sliding_attention" in kinds


def no_layer(raw: Mapping[str, Any]) -> Collection[int]:
    """For a family that rotates queries and keys in each layer."""
    return ()


def no_scales(raw: Mapping[str, Any]) -> Scales:
    """For a family without constant factors."""
    return Scales()


@dataclass(frozen=True, slots=True)
class Family:
    """The differences of a family from Llama.

    | field             | meaning                                                                                     |
    | ----------------- | ------------------------------------------------------------------------------------------- |
    | left_out          | defaults of keys that a config.json may leave out; the functions read it filled in           |
    | window            | the sliding window, None without one. The context served is limited to it: within it,        |
    |                   | sliding-window attention equals full attention                                              |
    | qkv_bias          | the projections of queries, keys and values always have a bias                              |
    | attention_bias    | with `attention_bias` in config.json, all four projections of attention have a bias         |
    | mlp_bias          | with `mlp_bias` in config.json, the three projections of the MLP have a bias                |
    | qk_norm           | queries and keys are normed before they are rotated: each head, or all heads of a token     |
    | norms             | names of the norms of a layer's attention and MLP in a checkpoint                           |
    | norms_after       | these norms are of the outputs of attention and MLP; Llama's are of their inputs            |
    | fused_projections | a checkpoint has `qkv_proj` and `gate_up_proj` in place of two or three matrices            |
    | rope_theta        | the rope's base where config.json has none                                                  |
    | rope_kinds        | the kinds of rope (`ROPES`) by their names in this family's config.json                     |
    | partial_rotary    | `partial_rotary_factor` in config.json may leave a part of each head unrotated              |
    | unrotated_layers  | the layers that do not rotate queries and keys                                              |
    | scales            | the constant factors                                                                        |
    | experts           | the names of the experts, in a family that has them                                         |
    """

    left_out: Mapping[str, Any]
    window: Callable[[Mapping[str, Any]], int | None] = no_window
    qkv_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: QkNorm | None = None
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    norms_after: bool = False
    fused_projections: bool = False
    rope_theta: float = 10_000.0
    rope_kinds: Mapping[str, str] = field(default_factory=lambda: dict(zip(ROPES, ROPES, strict=True)))
    partial_rotary: bool = False
    unrotated_layers: Callable[[Mapping[str, Any]], Collection[int]] = no_layer
    scales: Callable[[Mapping[str, Any]], Scales] = no_scales
    experts: ExpertNames | None = None
