"""`benchmarks.engine --family qwen3-moe`: the MLP of a layer with experts against its bare grouped matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from baton.engine.experts_config import Experts
from baton.engine.models.experts import ExpertsMlp
from baton.harness.report import Goal, median_ratio
from benchmarks.engine_peers import BATCH, CHUNK_TOKENS, THREADS
from benchmarks.timing import timed

# A layer of Qwen3-30B-A3B with a fourth of its experts: 302 million bytes in bfloat16, more than a cache.
HIDDEN_SIZE = 2048
EXPERTS = Experts(32, 8, 768, 0, normalised=True, layers=frozenset((0,)))
GOALS = {"decode_ratio_to_grouped": Goal(0.6), "prefill_ratio_to_grouped": Goal(0.6)}


def measure(repeats: int, dtype: torch.dtype, seed: int, step: Callable[[str], None]) -> dict[str, float]:
    """The time of the two grouped products alone over that of the whole MLP, at 16 decodes and at 512 prompt tokens."""
    torch.set_num_threads(THREADS)
    step("building the layer")
    generator = torch.Generator().manual_seed(seed)
    inner, count = EXPERTS.intermediate_size, EXPERTS.count
    shapes = {
        "router": (count, HIDDEN_SIZE),
        "experts_gate_up": (count * 2 * inner, HIDDEN_SIZE),
        "experts_down": (count * HIDDEN_SIZE, inner),
    }
    mlp = ExpertsMlp(
        EXPERTS,
        {
            name: torch.empty(shape, dtype=dtype).normal_(0.0, 0.02, generator=generator)
            for name, shape in shapes.items()
        },
    )
    figures = {}
    for name, tokens in (("decode_ratio_to_grouped", BATCH), ("prefill_ratio_to_grouped", CHUNK_TOKENS)):
        step(f"{tokens} tokens")
        x = torch.randn(tokens, HIDDEN_SIZE, generator=generator).to(dtype)
        figures[name] = _ratio(mlp, x, repeats)
    return figures


@torch.inference_mode()
def _ratio(mlp: ExpertsMlp, x: torch.Tensor, repeats: int) -> float:
    """Alternates both; the bare products have the same number of rows per expert, sorted before."""
    _, gate_up, down = mlp.matrices
    _, chosen = mlp.choice(x)
    ends = chosen.flatten().bincount(minlength=EXPERTS.count).cumsum(0).to(torch.int32)
    rows = x.repeat_interleave(EXPERTS.per_token, dim=0)
    gated = rows[:, : EXPERTS.intermediate_size].contiguous()

    def bare() -> None:
        F.grouped_mm(rows, gate_up.transpose(1, 2), offs=ends)
        F.grouped_mm(gated, down.transpose(1, 2), offs=ends)

    bare()
    mlp(x)
    return median_ratio([(timed(bare), timed(lambda: mlp(x))) for _ in range(repeats)])
