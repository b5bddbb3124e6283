"""Weights from safetensors straight into their final place: one tensor at a time, fused and cast on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from cluster.errors import ModelError
from engine.checkpoint import weight_files
from engine.model_config import ModelConfig
from engine.weight_copier import WeightCopier

Progress = Callable[[int, int], None]
_IGNORED = ("rotary_emb.inv_freq",)  # written by old versions of transformers, computed by us


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
    """Every tensor a checkpoint of this configuration must have, and its place."""
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


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: str = "cpu", progress: Progress | None = None
) -> dict[str, torch.Tensor]:
    """Our parameters, filled from the checkpoint in `folder`; never two copies of the model in memory.

    `progress` hears (bytes done, bytes in all). Raises `ModelError` naming a tensor that is missing, unknown or of
    the wrong shape.
    """
    parameters = {
        name: torch.empty(shape, dtype=dtype, device=device) for name, shape in parameter_shapes(config).items()
    }
    targets = checkpoint_targets(config)
    copier = WeightCopier(torch.device(device))
    total = sum(tensor.numel() * tensor.element_size() for tensor in parameters.values())
    done = 0
    for name, tensor in _tensors(weight_files(folder)):
        if name.endswith(_IGNORED) or (config.tied_head and name == "lm_head.weight"):
            continue
        target = targets.pop(name, None)
        if target is None:
            raise ModelError(f"The checkpoint has a tensor {name} that {config.architecture} does not use.")
        if tuple(tensor.shape) != target.shape:
            raise ModelError(f"The tensor {name} has shape {list(tensor.shape)} instead of {list(target.shape)}.")
        place = parameters[target.parameter][target.start : target.start + target.shape[0]]
        copier.copy(tensor, place)
        done += place.numel() * place.element_size()
        if progress is not None:
            progress(done, total)
    if targets:
        raise ModelError(f"The checkpoint lacks the tensor {min(targets)}.")
    copier.finish()
    return parameters


def random_weights(config: ModelConfig, dtype: torch.dtype, device: str, seed: int) -> dict[str, torch.Tensor]:
    """Parameters drawn as transformers draws them, for benchmarks that need shapes and no sense."""
    generator = torch.Generator(device=device).manual_seed(seed)
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        if name.endswith("norm"):
            parameters[name] = torch.ones(shape, dtype=dtype, device=device)
        else:
            values = torch.empty(shape, dtype=dtype, device=device)
            parameters[name] = values.normal_(0.0, 0.02, generator=generator)
    return parameters


def _tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"{path} is no readable safetensors file: {error}.") from None
