"""Checks the results: attention, logits, and tokens after a handoff.

NIXL is imported only for handoffs, so a host without it still checks the rest.
"""

from __future__ import annotations

from baton.engine.model_config import model_config
from benchmarks.gpu.attention_check import Geometry, attention_error
from benchmarks.gpu.device import prepare
from benchmarks.gpu.figures import ATTENTION, LOGITS, RANDOM_TOKENS, RECORDED, TOKENS
from benchmarks.gpu.graphs_check import recorded_error
from benchmarks.gpu.logits_check import logits_errors
from benchmarks.gpu.part import Part

BATCHES = 6


def run(part: Part) -> None:
    """Run every check."""
    sizes, seed = part.sizes, part.options.seed
    device = prepare(part.options.device)
    part.result.facts = device.facts()
    config = model_config(sizes.model)
    geometry = Geometry(config.num_heads, config.num_kv_heads, config.head_dim, sizes.page_size, sizes.dtype)
    part.step(
        "attention of ragged batches against float64",
        ATTENTION,
        lambda: {"attention_error": attention_error(device, geometry, BATCHES, seed, part.kernels)},
    )
    part.step(
        "logits against transformers", LOGITS, lambda: logits_errors(device, sizes.small_model, sizes.dtype, seed)
    )
    part.step(
        "recorded decode steps against plain ones",
        RECORDED,
        lambda: {RECORDED[0]: recorded_error(device, sizes.small_model, sizes.dtype, seed)},
    )
    tokens_after_a_handoff(part)

    def random_weights() -> dict[str, float]:
        from benchmarks.gpu.handoff_check import compare_random

        return compare_random(device, sizes.dtype, sizes.small_model, seed)

    part.step(f"the same with random weights, {sizes.dtype}", RANDOM_TOKENS, random_weights)


def tokens_after_a_handoff(part: Part) -> None:
    """Compare tokens after a handoff, in float32, or in bfloat16 with a note if float32 fails on this device."""
    device = prepare(part.options.device)
    for dtype in ("float32", "bfloat16"):

        def measure(dtype: str = dtype) -> dict[str, float]:
            from benchmarks.gpu.handoff_check import compare_built_in

            return compare_built_in(device, dtype, part.options.seed)

        if part.step(f"prefill, handoff, decode against one mixed worker, {dtype}", TOKENS, measure):
            part.note(f"Tokens after a handoff: the built-in model in {dtype}.")
            if dtype == "bfloat16":
                part.note(f"In float32 it failed: {part.result.failures.pop().sentence}")
            return
