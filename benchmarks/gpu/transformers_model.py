"""transformers' Llama over our weights: it shares their memory, and no weight is initialised first."""

from __future__ import annotations

import os
from typing import Any

import torch

from baton.engine.checkpoint_tensors import checkpoint_targets
from baton.engine.model_config import ModelConfig


def build_transformers(
    raw: dict[str, Any], config: ModelConfig, parameters: dict[str, torch.Tensor], device: str
) -> Any:
    """The model in the parameters' dtype on their device; its tensors are views of ours.

    Raises `RuntimeError` when a tensor of the model is left without values.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    dtype = parameters["embed"].dtype
    options = {key: value for key, value in raw.items() if key != "architectures"}
    theirs = LlamaConfig(**options, bos_token_id=None, pad_token_id=0, dtype=dtype)
    with torch.device("meta"):
        model = LlamaForCausalLM(theirs)
    state = {
        name: parameters[target.parameter][target.start : target.start + target.shape[0]]
        for name, target in checkpoint_targets(config).items()
    }
    if config.tied_head:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True, strict=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(theirs).to(device)  # State dicts lack its buffers.
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise RuntimeError(f"transformers' model has tensors that were not filled: {', '.join(left[:3])}.")
    return model.eval()
