"""Small checkpoints with random weights, for any supported family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_EXPERTS: dict[str, Any] = {"num_experts": 10, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
# The library's name of each family, and the options that make it what it is.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.1,
            "logits_scaling": 2.0,
        },
    ),
    "llama2": ("Llama", {}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "mixtral": ("Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "olmo2": ("Olmo2", {}),
    "phi3": ("Phi3", {}),
    "qwen2": ("Qwen2", {}),
    "qwen2-moe": ("Qwen2Moe", {**_EXPERTS, "shared_expert_intermediate_size": 96, "decoder_sparse_step": 2}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-moe": ("Qwen3Moe", {**_EXPERTS, "head_dim": 32, "norm_topk_prob": True, "mlp_only_layers": [0]}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [0, 1]}),
}

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def build_checkpoint(
    path: Path,
    family: str = "llama2",
    seed: int = 0,
    scale: float = 3.0,
    max_shard_size: str = "50GB",
    **overrides: Any,
) -> Path:
    """Save a random model with a byte-level tokenizer in `path`.

    `scale` enlarges the initial weights so that the likeliest token is clear of the second.
    """
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **options, **overrides})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "bias" in parameter_name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(scale)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    byte_tokenizer(config.vocab_size).save(str(path / "tokenizer.json"))
    return path


def byte_tokenizer(vocab_size: int = 320) -> Tokenizer:
    """One token per byte, after three special tokens; the rest of the vocabulary is pairs that never merge."""
    special = ["<unk>", "<eos>", "<pad>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(special)
    return tokenizer
