"""A Llama with random weights and one token per byte. Its answers are noise; everything around them is real.

It is written once into the user's cache folder, the same bytes on every machine.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

NAME = "builtin-random-llama"
_VERSION = 1
_SEED = 20_26
_VOCAB, _HIDDEN, _MLP, _LAYERS, _HEADS, _KV_HEADS, _HEAD_DIM = 320, 256, 768, 4, 8, 2, 32
_SPECIAL = ["<unk>", "<eos>", "<pad>"]
_EOS = 1
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": _VOCAB,
    "hidden_size": _HIDDEN,
    "intermediate_size": _MLP,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "head_dim": _HEAD_DIM,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": _EOS,
    "torch_dtype": "float32",
}


def builtin_model_folder() -> Path:
    """The checkpoint's folder, made on first use under $XDG_CACHE_HOME/baton (default ~/.cache/baton)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baton"
    folder = cache / f"{NAME}-{_VERSION}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=cache))
        write_checkpoint(draft)
        try:
            draft.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(draft)
    return folder


def write_checkpoint(folder: Path) -> None:
    """Write config.json, model.safetensors and tokenizer.json."""
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=2))
    save_file(_weights(), str(folder / "model.safetensors"), metadata={"format": "pt"})
    _tokenizer().save(str(folder / "tokenizer.json"))


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(_SEED)
    kv = _KV_HEADS * _HEAD_DIM

    def matrix(rows: int, columns: int) -> np.ndarray:
        # Large enough that the likeliest token is clear of the second: greedy answers do not hang on rounding.
        return rng.normal(0.0, 0.08, (rows, columns)).astype(np.float32)

    ones = np.ones(_HIDDEN, dtype=np.float32)
    head = matrix(_VOCAB, _HIDDEN)
    head[[token for token, piece in enumerate(_pieces()) if not piece.isascii() or len(piece) > 1]] = 0.0
    head[len(_pieces()) :] = 0.0  # only printable characters are ever the likeliest
    tensors = {"model.embed_tokens.weight": matrix(_VOCAB, _HIDDEN), "model.norm.weight": ones, "lm_head.weight": head}
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": ones,
            f"{prefix}.post_attention_layernorm.weight": ones,
            f"{prefix}.self_attn.q_proj.weight": matrix(_HIDDEN, _HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": matrix(kv, _HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": matrix(kv, _HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": matrix(_HIDDEN, _HIDDEN),
            f"{prefix}.mlp.gate_proj.weight": matrix(_MLP, _HIDDEN),
            f"{prefix}.mlp.up_proj.weight": matrix(_MLP, _HIDDEN),
            f"{prefix}.mlp.down_proj.weight": matrix(_HIDDEN, _MLP),
        }
    return tensors


def _pieces() -> list[str]:
    return [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]


def _tokenizer() -> Tokenizer:
    vocab = {piece: index for index, piece in enumerate(_pieces())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(_SPECIAL)
    return tokenizer
