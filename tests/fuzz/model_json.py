"""Configurations of small models, as their config.json has them."""

from __future__ import annotations

from baton.simulator.token_checker import VOCAB

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "eos_token_id": [1, 2],
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}

_PLAIN = {key: value for key, value in CONFIG.items() if key != "rope_parameters"}
_FACTORS = [1.0, 1.5]
# Of other families, with ropes that are read from other keys.
CONFIGS = [
    CONFIG,
    {
        **_PLAIN,
        "architectures": ["Phi3ForCausalLM"],
        "original_max_position_embeddings": 32,
        "rope_scaling": {"type": "longrope", "short_factor": _FACTORS, "long_factor": _FACTORS},
    },
    {
        **_PLAIN,
        "architectures": ["SmolLM3ForCausalLM"],
        "no_rope_layers": [1],
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0},
    },
    {
        **_PLAIN,
        "architectures": ["GraniteForCausalLM"],
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.2,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
]
