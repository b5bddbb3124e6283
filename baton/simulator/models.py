"""Model shapes by name, or from a config.json. Facts from the models' published configurations.

A shape may have weights of 8 bits: what the simulator can price, whether the engine runs it or not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.engine.model_config import ModelConfig, model_config
from baton.protocol.errors import ConfigError

BYTES = 2  # Of a bfloat16


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder's sizes, and the bytes of its weights."""

    config: ModelConfig
    itemsize: int = BYTES  # Of a number in the layers' matrices: 1 for FP8. KV, router, embedding and head have two.

    @property
    def experts(self) -> int:
        """The experts of a layer that has them; without any, the dense MLP counts as one."""
        return 1 if self.config.experts is None else self.config.experts.count

    @property
    def experts_per_token(self) -> int:
        return 1 if self.config.experts is None else self.config.experts.per_token

    @property
    def expert_layers(self) -> int:
        return self.config.num_layers - self.config.dense_layers

    @property
    def inner_size(self) -> int:
        """The columns of each expert, or of the dense MLP."""
        return self.config.intermediate_size if self.config.experts is None else self.config.experts.intermediate_size

    @property
    def router_parameters(self) -> int:
        """Of all layers' choice of experts."""
        return self.expert_layers * self.config.hidden_size * self.experts

    @property
    def num_parameters(self) -> int:
        """Weights of all matrices and the embedding."""
        return self.config.num_parameters

    @property
    def active_parameters(self) -> int:
        """Those that one token is multiplied with, and the embedding."""
        if self.config.experts is None:
            return self.num_parameters
        expert = 3 * self.config.hidden_size * self.config.experts.intermediate_size
        return self.num_parameters - self.expert_layers * (self.experts - self.experts_per_token) * expert

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, once."""
        whole = BYTES * (self.embedding_parameters + self.router_parameters)
        return whole + self.itemsize * (self.num_parameters - self.embedding_parameters - self.router_parameters)

    @property
    def embedding_parameters(self) -> int:
        """Of the embedding and the head."""
        return self.config.vocab_size * self.config.hidden_size * (1 if self.config.tied_head else 2)

    def distinct_experts(self, tokens: float) -> float:
        """Experts of a layer that a step of `tokens` tokens is expected to read, where each takes any as likely."""
        if self.experts == 1:
            return 1.0
        return self.experts * (1.0 - float((1.0 - self.experts_per_token / self.experts) ** tokens))


def _llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
    }


def _fp8(raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "quantization_config": {"quant_method": "fp8"}}


_MIXTRAL_8X7B = {
    **_llama(4096, 14336, 32, 32, 8, 32000),
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
_QWEN3_30B_A3B = {
    **_llama(2048, 6144, 48, 32, 4, 151936),
    "architectures": ["Qwen3MoeForCausalLM"],
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, 8, 128256),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64, 8, 128256),
    "llama-3.3-70b": _llama(8192, 28672, 80, 64, 8, 128256),
    "llama-3.3-70b-fp8": _fp8(_llama(8192, 28672, 80, 64, 8, 128256)),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, 32768),
    "qwen2.5-7b": _llama(3584, 18944, 28, 28, 4, 152064),
    "qwen2.5-32b": _llama(5120, 27648, 64, 40, 8, 152064),
    "qwen2.5-72b": _llama(8192, 29568, 80, 64, 8, 152064),
    "mixtral-8x7b": _MIXTRAL_8X7B,
    "qwen3-30b-a3b": _QWEN3_30B_A3B,
    "qwen3-30b-a3b-fp8": _fp8(_QWEN3_30B_A3B),
}


def shape_of(raw: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes. Raises `ModelError` for an unknown architecture or a missing key.

    Weights that are quantised to FP8 have one byte.
    """
    plain = dict(raw)
    quantised = plain.pop("quantization_config", None)
    if quantised is not None and not _is_fp8(quantised):
        raise ConfigError(f"Weights quantised by {quantised.get('quant_method')} have no costs; those in FP8 have.")
    return ModelShape(model_config(plain), BYTES if quantised is None else 1)


def _is_fp8(quantised: Mapping[str, Any]) -> bool:
    """Whether a config.json's quantisation stores weights in FP8."""
    groups = quantised.get("config_groups") or {}
    weights = [group.get("weights") or {} for group in groups.values()]
    floats = any(one.get("num_bits") == 8 and one.get("type") == "float" for one in weights)
    return "fp8" in str(quantised.get("quant_method")) or floats


def model_shape(name: str) -> ModelShape:
    """The shape of a known model, or of the config.json at a path (a file, or a folder that has one)."""
    known = SHAPES.get(name.lower())
    if known is not None:
        return shape_of(known)
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    try:
        return shape_of(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError):
        known_names = ", ".join(SHAPES)
        raise ConfigError(f"{name!r} is neither a config.json nor one of {known_names}.") from None
