"""The workload of `benchmarks.engine`, and transformers' runs of it: plain batches and continuous batching."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from baton.engine.checkpoint_tensors import checkpoint_targets
from baton.engine.model_config import ModelConfig

SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "eos_token_id": None,
}
PAGE_SIZE, CHUNK_TOKENS, BATCH, PROMPT_TOKENS, THREADS = 16, 512, 16, 256, 2


@dataclass(frozen=True, slots=True)
class Load:
    """The requests that every engine serves."""

    prompts: list[list[int]]
    new_tokens: int


def build_reference(config: ModelConfig, parameters: dict[str, torch.Tensor]) -> Any:
    """transformers' model with a copy of our weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    options = {key: value for key, value in SHAPE.items() if key != "architectures"}
    dtype = parameters["embed"].dtype
    model: Any = LlamaForCausalLM(LlamaConfig(**options, bos_token_id=None, pad_token_id=0))
    model = model.to(dtype).eval()
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, target in checkpoint_targets(config).items():
            theirs[name].copy_(parameters[target.parameter][target.start : target.start + target.shape[0]])
    return model


def run_generate_batch(model: Any, load: Load) -> float:
    """Output tokens per second of transformers' continuous batching."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model.set_attn_implementation("sdpa")
    generation = GenerationConfig(max_new_tokens=load.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(
        page_size=PAGE_SIZE, num_blocks=800, max_batch_tokens=CHUNK_TOKENS, max_requests_per_batch=BATCH
    )
    started = time.perf_counter()
    outputs = model.generate_batch(load.prompts, generation, batching)
    seconds = time.perf_counter() - started
    return sum(len(output.generated_tokens) for output in outputs.values()) / seconds


def run_static(model: Any, load: Load) -> float:
    """Output tokens per second of transformers' plain `generate` on batches of 16."""
    model.set_attn_implementation("sdpa")
    started = time.perf_counter()
    for first in range(0, len(load.prompts), BATCH):
        batch = torch.tensor(load.prompts[first : first + BATCH])
        model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=load.new_tokens,
            min_new_tokens=load.new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return len(load.prompts) * load.new_tokens / (time.perf_counter() - started)
