"""The tensors that a checkpoint must have, their targets, and a check of its headers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from baton.engine.families.table import FAMILIES
from baton.engine.fp8 import FP8, Scale, TensorHeader, belongs_to_fp8, scale_of
from baton.engine.model_config import ModelConfig
from baton.protocol.errors import ModelError
from baton.protocol.head_slices import heads_of

DTYPES = ("F32", "BF16", "F16", "F64")  # Accepted tensor types, as named in a safetensors header.
# Unused tensors: frequencies that old versions of transformers stored, and scales of a quantised KV cache.
_UNUSED_ENDINGS = ("rotary_emb.inv_freq", ".k_scale", ".v_scale")
_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.")  # Python refuses to convert thousands of digits
_PREDICTS_AHEAD = re.compile(r"(model\.)?mtp\.")  # Layers for multi-token prediction.


@dataclass(frozen=True, slots=True)
class Target:
    """Where a rank's part of a checkpoint tensor goes: to rows of one of its parameters, from `start` on."""

    parameter: str
    start: int
    shape: tuple[int, ...]  # Of the tensor in the checkpoint.
    rows: tuple[range, ...]  # The rank's part of it: these, one after the other.
    columns: range | None = None  # Of a matrix; None for all.
    scale: Scale | None = None  # Of a matrix that is stored in FP8.

    @property
    def parts(self) -> list[tuple[int, tuple[slice, ...]]]:
        """The rank's parts: (first row of the parameter, index in the checkpoint's tensor), without empty ones."""
        columns = () if self.columns is None else (slice(self.columns.start, self.columns.stop),)
        parts, start = [], self.start
        for rows in self.rows:
            if rows:
                parts.append((start, (slice(rows.start, rows.stop), *columns)))
            start += len(rows)
        return parts

    @property
    def num_rows(self) -> int:
        """Rows of the parameter that this tensor fills."""
        return sum(len(rows) for rows in self.rows)

    @property
    def num_values(self) -> int:
        """The number of values of the rank's part."""
        columns = self.shape[1:] if self.columns is None else (len(self.columns),)
        return self.num_rows * prod(columns)


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
        if config.out_bias:
            shapes[f"{layer}.out_bias"] = (hidden,)
        if config.qk_norm == "head":
            shapes |= {f"{layer}.q_norm": (config.head_dim,), f"{layer}.k_norm": (config.head_dim,)}
        elif config.qk_norm == "projection":
            shapes |= {f"{layer}.q_norm": (heads,), f"{layer}.k_norm": (config.num_kv_heads * config.head_dim,)}
    return shapes


def _mlp_shapes(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Those of one layer's MLP; the matrices of its experts are stacked along the rows."""
    experts, hidden, inner = config.experts, config.hidden_size, config.intermediate_size
    if experts is None or layer not in experts.layers:
        biases = {f"{layer}.gate_up_bias": (2 * inner,), f"{layer}.down_bias": (hidden,)} if config.mlp_bias else {}
        return {f"{layer}.gate_up": (2 * inner, hidden), f"{layer}.down": (hidden, inner), **biases}
    inner, shared = experts.intermediate_size, experts.shared_intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        f"{layer}.router": (experts.count, hidden),
        f"{layer}.experts_gate_up": (experts.count * 2 * inner, hidden),
        f"{layer}.experts_down": (experts.count * hidden, inner),
    }
    if shared:
        shapes[f"{layer}.shared_gate"] = (1, hidden)
        shapes |= {f"{layer}.shared_gate_up": (2 * shared, hidden), f"{layer}.shared_down": (hidden, shared)}
    return shapes


def checkpoint_targets(config: ModelConfig, num_ranks: int = 1, rank: int = 0) -> dict[str, Target]:
    """Every tensor that a checkpoint of this configuration must have, and the target of the rank's part of it."""
    vocabulary, hidden = (config.vocabulary(num_ranks, rank),), config.hidden_size
    targets = {
        "model.embed_tokens.weight": Target("embed", 0, (config.vocab_size, hidden), vocabulary),
        "model.norm.weight": _whole("norm", hidden),
    }
    if not config.tied_head:
        targets["lm_head.weight"] = Target("head", 0, (config.vocab_size, hidden), vocabulary)
    for layer in range(config.num_layers):
        targets |= _attention_targets(config, layer, num_ranks, rank)
        has_experts = config.experts is not None and layer in config.experts.layers
        targets |= (_expert_targets if has_experts else _dense_targets)(config, layer, num_ranks, rank)
    return targets


def _attention_targets(config: ModelConfig, layer: int, num_ranks: int, rank: int) -> dict[str, Target]:
    """Those of a layer's attention and of both norms."""
    hidden, head_dim = config.hidden_size, config.head_dim
    q, kv = config.num_heads * head_dim, config.num_kv_heads * head_dim
    kv_heads = heads_of(config.num_kv_heads, num_ranks, rank)
    q_rows = _share(q, num_ranks, rank)
    kv_rows = range(kv_heads.start * head_dim, kv_heads.stop * head_dim)
    family, prefix = FAMILIES[config.architecture], f"model.layers.{layer}"
    attention = f"{prefix}.self_attn"
    targets = {
        f"{prefix}.{family.norms[0]}.weight": _whole(f"{layer}.attention_norm", hidden),
        f"{attention}.o_proj.weight": Target(f"{layer}.out", 0, (hidden, q), (range(hidden),), q_rows),
        f"{prefix}.{family.norms[1]}.weight": _whole(f"{layer}.mlp_norm", hidden),
    }
    if config.out_bias:
        targets[f"{attention}.o_proj.bias"] = _whole(f"{layer}.out_bias", hidden)
    if config.qk_norm == "head":
        targets[f"{attention}.q_norm.weight"] = _whole(f"{layer}.q_norm", head_dim)
        targets[f"{attention}.k_norm.weight"] = _whole(f"{layer}.k_norm", head_dim)
    elif config.qk_norm == "projection":
        targets[f"{attention}.q_norm.weight"] = Target(f"{layer}.q_norm", 0, (q,), (q_rows,))
        targets[f"{attention}.k_norm.weight"] = Target(f"{layer}.k_norm", 0, (kv,), (kv_rows,))
    qkv: dict[str, _Rows] = {"q_proj": (q, (q_rows,)), "k_proj": (kv, (kv_rows,)), "v_proj": (kv, (kv_rows,))}
    if family.fused_projections:
        qkv = {"qkv_proj": _stacked(*qkv.values())}
    return targets | _filled_by(qkv, attention, f"{layer}.qkv", hidden, config.qkv_bias)


def _dense_targets(config: ModelConfig, layer: int, num_ranks: int, rank: int) -> dict[str, Target]:
    """Those of a layer's dense MLP."""
    hidden, inner, place = config.hidden_size, config.intermediate_size, f"model.layers.{layer}.mlp"
    own = _share(inner, num_ranks, rank)
    targets = {f"{place}.down_proj.weight": Target(f"{layer}.down", 0, (hidden, inner), (range(hidden),), own)}
    if config.mlp_bias:
        targets[f"{place}.down_proj.bias"] = _whole(f"{layer}.down_bias", hidden)
    gate_up: dict[str, _Rows] = {"gate_proj": (inner, (own,)), "up_proj": (inner, (own,))}
    if FAMILIES[config.architecture].fused_projections:
        gate_up = {"gate_up_proj": _stacked(*gate_up.values())}
    return targets | _filled_by(gate_up, place, f"{layer}.gate_up", hidden, config.mlp_bias)


def _expert_targets(config: ModelConfig, layer: int, num_ranks: int, rank: int) -> dict[str, Target]:
    """Those of a layer's router and experts."""
    experts, names = config.experts, FAMILIES[config.architecture].experts
    assert experts is not None
    assert names is not None
    hidden, count, block = config.hidden_size, experts.count, f"model.layers.{layer}.{names.block}"
    targets = {f"{block}.gate.weight": Target(f"{layer}.router", 0, (count, hidden), (range(count),))}
    mlps = [(f"experts.{index}", "experts", index, experts.intermediate_size) for index in range(count)]
    if experts.shared_intermediate_size:
        mlps.append(("shared_expert", "shared", 0, experts.shared_intermediate_size))
        targets[f"{block}.shared_expert_gate.weight"] = Target(f"{layer}.shared_gate", 0, (1, hidden), (range(1),))
    for place, parameters, index, inner in mlps:
        gate, up, down = (f"{block}.{place}.{name}.weight" for name in names.projections)
        own = _share(inner, num_ranks, rank)
        gate_up, shape, start = f"{layer}.{parameters}_gate_up", (inner, hidden), 2 * index * len(own)
        targets[gate] = Target(gate_up, start, shape, (own,))
        targets[up] = Target(gate_up, start + len(own), shape, (own,))
        targets[down] = Target(f"{layer}.{parameters}_down", index * hidden, (hidden, inner), (range(hidden),), own)
    return targets


_Rows = tuple[int, tuple[range, ...]]  # The rows of a tensor in the checkpoint, and the rank's part of them.


def _stacked(*tensors: _Rows) -> _Rows:
    """One tensor in place of several."""
    parts: list[range] = []
    start = 0
    for rows, own in tensors:
        parts += [range(start + part.start, start + part.stop) for part in own]
        start += rows
    return start, tuple(parts)


def _filled_by(tensors: dict[str, _Rows], place: str, parameter: str, columns: int, bias: bool) -> dict[str, Target]:
    """The targets of matrices (and their biases) that fill a parameter one after the other."""
    targets: dict[str, Target] = {}
    start = 0
    for name, (rows, own) in tensors.items():
        targets[f"{place}.{name}.weight"] = target = Target(parameter, start, (rows, columns), own)
        if bias:
            targets[f"{place}.{name}.bias"] = Target(f"{parameter}_bias", start, (rows,), own)
        start += target.num_rows
    return targets


def _whole(parameter: str, length: int) -> Target:
    """A vector that every rank keeps."""
    return Target(parameter, 0, (length,), (range(length),))


def _share(length: int, num_ranks: int, rank: int) -> range:
    """One of `num_ranks` equal parts."""
    return range(rank * length // num_ranks, (rank + 1) * length // num_ranks)


def place_tensors(
    config: ModelConfig, headers: Mapping[str, TensorHeader], num_ranks: int = 1, rank: int = 0
) -> dict[str, Target]:
    """The target of every tensor that this model uses, on one of `num_ranks`.

    Raises `ModelError` naming a tensor that is missing, unknown, of the wrong shape, or not of plain floating point
    numbers or of FP8 with scales: a quantised weight is wrong without its scales.
    """
    wanted = checkpoint_targets(config, num_ranks, rank)
    places = {}
    for name, header in headers.items():
        if _unused(config, name) or (config.fp8 is not None and belongs_to_fp8(name, headers)):
            continue
        target = wanted.pop(name, None)
        if target is None:
            raise ModelError(f"The checkpoint has a tensor {name} that {config.architecture} does not use.")
        fp8 = config.fp8 if header.dtype == FP8 else None
        if header.dtype not in DTYPES and fp8 is None:
            raise ModelError(
                f"The tensor {name} is of type {header.dtype}, as in a quantised checkpoint; use one in "
                "float32, bfloat16 or float16."
            )
        if header.shape != target.shape:
            raise ModelError(f"The tensor {name} has shape {list(header.shape)} instead of {list(target.shape)}.")
        places[name] = target if fp8 is None else replace(target, scale=scale_of(fp8, name, headers))
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
