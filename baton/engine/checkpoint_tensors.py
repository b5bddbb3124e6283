"""The tensors that a checkpoint must have, their targets, and a check of its headers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from baton.engine.model_config import ModelConfig
from baton.protocol.errors import ModelError

DTYPES = ("F32", "BF16", "F16", "F64")  # Accepted tensor types, as named in a safetensors header.
# Unused tensors: frequencies that old versions of transformers stored, and scales of a quantised KV cache.
_UNUSED_ENDINGS = ("rotary_emb.inv_freq", ".k_scale", ".v_scale")
_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.")  # Python refuses to convert thousands of digits
_PREDICTS_AHEAD = re.compile(r"(model\.)?mtp\.")  # Layers for multi-token prediction.


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """The header of one tensor in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a checkpoint tensor goes: rows [start, start + shape[0]) of one of our parameters."""

    parameter: str
    start: int
    shape: tuple[int, ...]


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our parameters by name; q, k, v are one matrix, and so are gate and up."""
    hidden, heads = config.hidden_size, config.num_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed": (config.vocab_size, hidden), "norm": (hidden,)}
    if not config.tied_head:
        shapes["head"] = (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        shapes |= {
            f"{layer}.attention_norm": (hidden,),
            f"{layer}.qkv": (config.qkv_size, hidden),
            f"{layer}.out": (hidden, heads),
            f"{layer}.mlp_norm": (hidden,),
            f"{layer}.gate_up": (2 * config.intermediate_size, hidden),
            f"{layer}.down": (hidden, config.intermediate_size),
        }
        if config.qkv_bias:
            shapes[f"{layer}.qkv_bias"] = (config.qkv_size,)
        if config.qk_norm:
            shapes |= {f"{layer}.q_norm": (config.head_dim,), f"{layer}.k_norm": (config.head_dim,)}
    return shapes


def checkpoint_targets(config: ModelConfig) -> dict[str, Target]:
    """Every tensor that a checkpoint of this configuration must have, and its target."""
    hidden, q = config.hidden_size, config.num_heads * config.head_dim
    kv, mlp = config.num_kv_heads * config.head_dim, config.intermediate_size
    targets = {
        "model.embed_tokens.weight": Target("embed", 0, (config.vocab_size, hidden)),
        "model.norm.weight": Target("norm", 0, (hidden,)),
    }
    if not config.tied_head:
        targets["lm_head.weight"] = Target("head", 0, (config.vocab_size, hidden))
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        attention = f"{prefix}.self_attn"
        targets |= {
            f"{prefix}.input_layernorm.weight": Target(f"{layer}.attention_norm", 0, (hidden,)),
            f"{attention}.o_proj.weight": Target(f"{layer}.out", 0, (hidden, q)),
            f"{prefix}.post_attention_layernorm.weight": Target(f"{layer}.mlp_norm", 0, (hidden,)),
            f"{prefix}.mlp.gate_proj.weight": Target(f"{layer}.gate_up", 0, (mlp, hidden)),
            f"{prefix}.mlp.up_proj.weight": Target(f"{layer}.gate_up", mlp, (mlp, hidden)),
            f"{prefix}.mlp.down_proj.weight": Target(f"{layer}.down", 0, (hidden, mlp)),
        }
        for name, start, rows in (("q", 0, q), ("k", q, kv), ("v", q + kv, kv)):
            targets[f"{attention}.{name}_proj.weight"] = Target(f"{layer}.qkv", start, (rows, hidden))
            if config.qkv_bias:
                targets[f"{attention}.{name}_proj.bias"] = Target(f"{layer}.qkv_bias", start, (rows,))
        if config.qk_norm:
            targets[f"{attention}.q_norm.weight"] = Target(f"{layer}.q_norm", 0, (config.head_dim,))
            targets[f"{attention}.k_norm.weight"] = Target(f"{layer}.k_norm", 0, (config.head_dim,))
    return targets


def place_tensors(config: ModelConfig, headers: Mapping[str, TensorHeader]) -> dict[str, Target]:
    """The target of every tensor that this model uses.

    Raises `ModelError` naming a tensor that is missing, unknown, of the wrong shape, or not of plain floating point
    numbers: a quantised weight is wrong without its scales.
    """
    wanted = checkpoint_targets(config)
    places = {}
    for name, header in headers.items():
        if _unused(config, name):
            continue
        target = wanted.pop(name, None)
        if target is None:
            raise ModelError(f"The checkpoint has a tensor {name} that {config.architecture} does not use.")
        if header.dtype not in DTYPES:
            raise ModelError(
                f"The tensor {name} is of type {header.dtype}, as in a quantised checkpoint; use one in "
                "float32, bfloat16 or float16."
            )
        if header.shape != target.shape:
            raise ModelError(f"The tensor {name} has shape {list(header.shape)} instead of {list(target.shape)}.")
        places[name] = target
    if wanted:
        raise ModelError(f"The checkpoint lacks the tensor {min(wanted)}.")
    return places


def _unused(config: ModelConfig, name: str) -> bool:
    """Whether the computation does not use a tensor; transformers ignores the same tensors."""
    if config.tied_head and name == "lm_head.weight":
        return True
    layer = _LAYER.match(name)
    if layer is not None and int(layer[1]) >= config.num_layers:
        return True
    return name.endswith(_UNUSED_ENDINGS) or _PREDICTS_AHEAD.match(name) is not None
