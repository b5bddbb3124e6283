"""The tensors that a checkpoint must have, their targets, and a check of its headers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from baton.engine.families import FAMILIES
from baton.engine.model_config import ModelConfig
from baton.protocol.errors import ModelError
from baton.protocol.head_slices import heads_of

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
    """Where a rank's part of a checkpoint tensor goes: rows [start, start + len(rows)) of one of its parameters."""

    parameter: str
    start: int
    shape: tuple[int, ...]  # Of the tensor in the checkpoint.
    rows: range  # The rank's part of it.
    columns: range | None = None  # Of a matrix; None for all.

    @property
    def part(self) -> tuple[slice, ...]:
        """The index of the rank's part in the checkpoint's tensor."""
        dimensions = [self.rows] if self.columns is None else [self.rows, self.columns]
        return tuple(slice(part.start, part.stop) for part in dimensions)

    @property
    def num_values(self) -> int:
        """The number of values of the rank's part."""
        columns = self.shape[1:] if self.columns is None else (len(self.columns),)
        return len(self.rows) * prod(columns)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our parameters by name; q, k, v are one matrix, and so are gate and up.

    Those of a rank have the shapes of its `ModelConfig.slice`.
    """
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
            **_mlp_shapes(config, layer),
        }
        if config.qkv_bias:
            shapes[f"{layer}.qkv_bias"] = (config.qkv_size,)
        if config.qk_norm:
            shapes |= {f"{layer}.q_norm": (config.head_dim,), f"{layer}.k_norm": (config.head_dim,)}
    return shapes


def _mlp_shapes(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Those of one layer's MLP. Matrices of experts are stacked along the rows."""
    experts, hidden = config.experts, config.hidden_size
    if experts is None or layer not in experts.layers:
        inner = config.intermediate_size
        return {f"{layer}.gate_up": (2 * inner, hidden), f"{layer}.down": (hidden, inner)}
    shapes: dict[str, tuple[int, ...]] = {
        f"{layer}.router": (experts.count, hidden),
        f"{layer}.experts_gate_up": (experts.count * 2 * experts.intermediate_size, hidden),
        f"{layer}.experts_down": (experts.count * hidden, experts.intermediate_size),
    }
    if experts.shared_intermediate_size:
        shapes |= {
            f"{layer}.shared_gate": (1, hidden),
            f"{layer}.shared_gate_up": (2 * experts.shared_intermediate_size, hidden),
            f"{layer}.shared_down": (hidden, experts.shared_intermediate_size),
        }
    return shapes


def checkpoint_targets(config: ModelConfig, num_ranks: int = 1, rank: int = 0) -> dict[str, Target]:
    """Every tensor that a checkpoint of this configuration must have, and the target of the rank's part of it."""
    own, hidden = config.slice(num_ranks, rank), config.hidden_size
    head_dim = config.head_dim
    q, kv, own_q = config.num_heads * head_dim, config.num_kv_heads * head_dim, own.num_heads * head_dim
    kv_heads = heads_of(config.num_kv_heads, num_ranks, rank)
    vocabulary = config.vocabulary(num_ranks, rank)
    q_rows = _share(q, num_ranks, rank)
    kv_rows = range(kv_heads.start * head_dim, kv_heads.stop * head_dim)
    projections = (("q", 0, q, q_rows), ("k", own_q, kv, kv_rows), ("v", own_q + len(kv_rows), kv, kv_rows))
    targets = {
        "model.embed_tokens.weight": Target("embed", 0, (config.vocab_size, hidden), vocabulary),
        "model.norm.weight": _whole("norm", hidden),
    }
    if not config.tied_head:
        targets["lm_head.weight"] = Target("head", 0, (config.vocab_size, hidden), vocabulary)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        attention = f"{prefix}.self_attn"
        targets |= {
            f"{prefix}.input_layernorm.weight": _whole(f"{layer}.attention_norm", hidden),
            f"{attention}.o_proj.weight": Target(f"{layer}.out", 0, (hidden, q), range(hidden), q_rows),
            f"{prefix}.post_attention_layernorm.weight": _whole(f"{layer}.mlp_norm", hidden),
            **_mlp_targets(config, layer, num_ranks, rank),
        }
        for name, start, rows, part in projections:
            targets[f"{attention}.{name}_proj.weight"] = Target(f"{layer}.qkv", start, (rows, hidden), part)
            if config.qkv_bias:
                targets[f"{attention}.{name}_proj.bias"] = Target(f"{layer}.qkv_bias", start, (rows,), part)
        if config.qk_norm:
            targets[f"{attention}.q_norm.weight"] = _whole(f"{layer}.q_norm", head_dim)
            targets[f"{attention}.k_norm.weight"] = _whole(f"{layer}.k_norm", head_dim)
    return targets


def _mlp_targets(config: ModelConfig, layer: int, num_ranks: int, rank: int) -> dict[str, Target]:
    """Those of one layer's MLP: a dense one, or the experts with their router."""
    prefix, hidden = f"model.layers.{layer}", config.hidden_size
    experts, names = config.experts, FAMILIES[config.architecture].experts
    if experts is None or names is None or layer not in experts.layers:
        place = (f"{prefix}.mlp", ("gate_proj", "up_proj", "down_proj"), f"{layer}.", 0)
        return _projections(*place, (hidden, config.intermediate_size), num_ranks, rank)
    block, count = f"{prefix}.{names.block}", experts.count
    targets = {f"{block}.gate.weight": Target(f"{layer}.router", 0, (count, hidden), range(count))}
    for expert in range(count):
        place = (f"{block}.experts.{expert}", names.projections, f"{layer}.experts_", expert)
        targets |= _projections(*place, (hidden, experts.intermediate_size), num_ranks, rank)
    if experts.shared_intermediate_size:
        place = (f"{block}.shared_expert", names.projections, f"{layer}.shared_", 0)
        targets |= _projections(*place, (hidden, experts.shared_intermediate_size), num_ranks, rank)
        targets[f"{block}.shared_expert_gate.weight"] = Target(f"{layer}.shared_gate", 0, (1, hidden), range(1))
    return targets


def _projections(
    place: str,
    names: tuple[str, str, str],
    parameters: str,
    index: int,
    down_shape: tuple[int, int],
    num_ranks: int,
    rank: int,
) -> dict[str, Target]:
    """The matrices gate, up and down of an MLP, the one with this index in its parameters."""
    hidden, inner = down_shape
    columns = _share(inner, num_ranks, rank)
    gate, up, down = (f"{place}.{name}.weight" for name in names)
    first = 2 * index * len(columns)
    return {
        gate: Target(f"{parameters}gate_up", first, (inner, hidden), columns),
        up: Target(f"{parameters}gate_up", first + len(columns), (inner, hidden), columns),
        down: Target(f"{parameters}down", index * hidden, down_shape, range(hidden), columns),
    }


def _whole(parameter: str, length: int) -> Target:
    """A vector that every rank keeps."""
    return Target(parameter, 0, (length,), range(length))


def _share(length: int, num_ranks: int, rank: int) -> range:
    """One of `num_ranks` equal parts."""
    return range(rank * length // num_ranks, (rank + 1) * length // num_ranks)


def place_tensors(
    config: ModelConfig, headers: Mapping[str, TensorHeader], num_ranks: int = 1, rank: int = 0
) -> dict[str, Target]:
    """The target of every tensor that this model uses, on one of `num_ranks`.

    Raises `ModelError` naming a tensor that is missing, unknown, of the wrong shape, or not of plain floating point
    numbers: a quantised weight is wrong without its scales.
    """
    wanted = checkpoint_targets(config, num_ranks, rank)
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
