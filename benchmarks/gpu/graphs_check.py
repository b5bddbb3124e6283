"""Checks recorded decode steps, some of them padded, against the same steps with separately launched kernels."""

from __future__ import annotations

from typing import Any

from baton.engine.batch import StepBudget, plan_step
from baton.engine.step import SampledToken
from baton.protocol.request import MAX_LOGPROBS
from benchmarks.gpu.device import Device, build_executor, build_model
from benchmarks.gpu.sequences import decoding

BATCHES = (1, 3, 11)  # All but the first are padded.
CONTEXT = 150


def recorded_error(device: Device, raw: dict[str, Any], dtype: str, seed: int) -> float:
    """The largest difference of a likely token's log-probability between both kinds of steps, over several batches.

    Infinite when most of the likely tokens differ.
    """
    config, parameters = build_model(raw, dtype, device, seed)
    layout = config.page_layout(256, 16, dtype, "random")
    recorded, plain = (
        build_executor(device, config, parameters, layout, max(BATCHES) + 5, 256, graphs=graphs)
        for graphs in (True, False)
    )
    plain.pages.copy_(recorded.pages)
    worst = 0.0
    for batch in BATCHES:
        left, right = (_step(executor, batch, seed) for executor in (recorded, plain))
        for one, other in zip(left, right, strict=True):
            known = dict(other.top_logprobs)
            shared = [(value, known[token]) for token, value in one.top_logprobs if token in known]
            if len(shared) < MAX_LOGPROBS // 2:
                return float("inf")
            worst = max(worst, *(abs(value - same) for value, same in shared))
    return worst


def _step(executor: Any, batch: int, seed: int) -> list[SampledToken]:
    """The tokens of one decode step; equal seeds give equal sequences."""
    vocab_size = executor.config.vocab_size
    sequences = decoding(executor.layout, vocab_size, batch, CONTEXT, 2, seed, logprobs=MAX_LOGPROBS)
    plan = plan_step(sequences, (), StepBudget(256, batch))
    assert plan is not None
    return list(executor.execute(plan).tokens)
