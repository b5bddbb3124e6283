"""Compiles everything that is compiled on first use, before any measurement: FlashInfer's and Triton's kernels."""

from __future__ import annotations

import time
from typing import Any

from baton.engine.batch import StepBudget
from baton.engine.model_config import model_config
from baton.engine.sequence import Sequence
from baton.engine.step import Slice, StepPlan
from benchmarks.gpu.attention_check import Geometry, attention_error
from benchmarks.gpu.device import Device, build_executor, build_model, prepare
from benchmarks.gpu.figures import COMPILE
from benchmarks.gpu.part import Part
from benchmarks.gpu.sequences import decoding, prefilling, turn
from benchmarks.gpu.sizes import Sizes


def run(part: Part) -> None:
    """Call attention and every kind of step once, and time it."""
    sizes = part.sizes
    device = prepare(part.options.device)
    part.result.facts = device.facts()
    if device.on_gpu:
        part.say("kernels that are not prebuilt are compiled now, which takes minutes")
    started = time.monotonic()
    config = model_config(sizes.model)
    geometry = Geometry(config.num_heads, config.num_kv_heads, config.head_dim, sizes.page_size, sizes.dtype)

    def attention() -> dict[str, float]:
        attention_error(device, geometry, 1, part.options.seed, part.kernels)
        return {}

    def engine() -> dict[str, float]:
        first_steps(device, {**sizes.model, "num_hidden_layers": 1}, sizes, part.options.seed, part.kernels)
        return {}

    part.step("attention", [], attention)
    part.step("one layer: prefill, decode and mixed steps", [], engine)
    part.result.figures[COMPILE] = time.monotonic() - started


def first_steps(device: Device, raw: dict[str, Any], sizes: Sizes, seed: int, kernels: str) -> None:
    """Run every kind of step once, on a model of one layer."""
    config, parameters = build_model(raw, sizes.dtype, device, seed)
    layout = config.page_layout(64, sizes.page_size, sizes.dtype, "random")
    executor = build_executor(device, config, parameters, layout, sizes.max_batch, sizes.chunk_tokens, kernels=kernels)
    (whole,) = prefilling(layout, config.vocab_size, 64, seed)
    executor.execute(whole)
    sequences = decoding(layout, config.vocab_size, 2, 40, 4, seed)
    turn(executor, sequences, StepBudget(64, 2))
    first, second = prefilling(layout, config.vocab_size, 64, seed + 1, 32)
    for chunk in (first, second):
        decodes = StepPlan(tuple(decode_slices(sequences)) + chunk.slices)
        executor.execute(decodes)


def decode_slices(sequences: list[Sequence]) -> list[Slice]:
    """A decode slice for each sequence."""
    return [Slice(sequence, sequence.computed, 1, True) for sequence in sequences]
