"""The sizes of a run: a model's shape, and the batches, prompts and bytes that go with it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

GIB, MIB = 1 << 30, 1 << 20

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "eos_token_id": None,
}
TINY: dict[str, Any] = {
    **LLAMA_8B,
    "vocab_size": 2400,  # As the built-in model, whose tokenizer the gateway uses.
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Everything that depends on the size of the machine. Lengths are in tokens, points are (batch, context)."""

    model: dict[str, Any]
    small_model: dict[str, Any]  # For checks against a reference: the same heads, fewer and smaller layers.
    dtype: str
    decode_points: tuple[tuple[int, int], ...]
    graphs_point: tuple[int, int]  # Measured with and without CUDA graphs.
    sampled_point: tuple[int, int]  # Also measured with temperature and top_p.
    turn_points: tuple[tuple[int, int], ...]  # Also measured through a whole worker.
    layouts_point: tuple[int, int]  # Measured with every page layout.
    prompts: tuple[int, ...]
    most_kv_bytes: int  # Points with more KV are skipped.
    matmul_size: int
    copy_bytes: int
    handoff_prompt: int
    handoff_chunk: int
    requests: int
    request_prompt: int
    request_output: int
    max_batch: int
    chunk_tokens: int
    repeats: int
    sampled_batches: tuple[int, ...]
    sampled_rows: int  # Rows whose tokens are compared with the CPU's.
    page_size: int = 16

    @property
    def longest(self) -> int:
        """The longest prompt or context."""
        return max(*self.prompts, *(context for _, context in self.decode_points))


SIZES = {
    "llama-8b": Sizes(
        model=LLAMA_8B,
        small_model={
            **LLAMA_8B,
            "vocab_size": 8192,
            "hidden_size": 1024,
            "intermediate_size": 3584,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
        },
        dtype="bfloat16",
        decode_points=tuple((batch, context) for context in (1024, 4096) for batch in (1, 16, 64, 256)),
        graphs_point=(16, 1024),
        sampled_point=(64, 1024),
        turn_points=((64, 1024), (256, 1024)),
        layouts_point=(256, 1024),
        prompts=(2048, 8192),
        most_kv_bytes=80 * GIB,
        matmul_size=8192,
        copy_bytes=4 * GIB,
        handoff_prompt=8192,
        handoff_chunk=1024,
        requests=64,
        request_prompt=1024,
        request_output=128,
        max_batch=32,
        chunk_tokens=2048,
        repeats=30,
        sampled_batches=(1, 64, 256),
        sampled_rows=4096,
    ),
    "tiny": Sizes(
        model=TINY,
        small_model=TINY,
        dtype="float32",
        decode_points=((1, 64), (4, 64), (4, 128), (4096, 128)),
        graphs_point=(4, 64),
        sampled_point=(4, 64),
        turn_points=((4, 64),),
        layouts_point=(4, 64),
        prompts=(64, 256),
        most_kv_bytes=16 * MIB,
        matmul_size=128,
        copy_bytes=8 * MIB,
        handoff_prompt=512,
        handoff_chunk=128,
        requests=6,
        request_prompt=48,
        request_output=8,
        max_batch=4,
        chunk_tokens=64,
        repeats=4,
        sampled_batches=(1, 4),
        sampled_rows=64,
    ),
}


def chosen_sizes(shape: str, points: Sequence[str] = ()) -> Sizes:
    """The sizes of a shape, with only the named decode points (none named: all).

    Raises `ValueError` listing the valid names.
    """
    sizes = SIZES[shape]
    named = {point_name(point): point for point in sizes.decode_points}
    unknown = sorted(set(points) - set(named))
    if unknown:
        raise ValueError(f"--points: unknown point {', '.join(unknown)}; {shape} has {', '.join(named)}")
    return replace(sizes, decode_points=tuple(named[name] for name in points)) if points else sizes


def point_name(point: tuple[int, int]) -> str:
    """A batch and a context in the names of figures: b64_1k."""
    batch, context = point
    return f"b{batch}_{label(context)}"


def label(tokens: int) -> str:
    """A length in the names of figures: 1k for 1024."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
