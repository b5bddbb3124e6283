"""Model shapes by name, or from a config.json. Facts from the models' published configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from baton.engine.model_config import ModelConfig, model_config
from baton.protocol.errors import ConfigError


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


SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, 8, 128256),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64, 8, 128256),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, 32768),
    "qwen2.5-7b": _llama(3584, 18944, 28, 28, 4, 152064),
    "qwen2.5-32b": _llama(5120, 27648, 64, 40, 8, 152064),
    "qwen2.5-72b": _llama(8192, 29568, 80, 64, 8, 152064),
}


def model_shape(name: str) -> ModelConfig:
    """The shape of a known model, or of the config.json at a path (a file, or a folder that has one)."""
    known = SHAPES.get(name.lower())
    if known is not None:
        return model_config(known)
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    try:
        return model_config(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError):
        known_names = ", ".join(SHAPES)
        raise ConfigError(f"{name!r} is neither a config.json nor one of {known_names}.") from None
