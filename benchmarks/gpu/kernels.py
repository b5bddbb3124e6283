"""Which of FlashInfer's prefill kernels is faster here: attention of the longest prompt, one layer.

Comes last, because whichever was not used so far is compiled first.
"""

from __future__ import annotations

import torch

from benchmarks.gpu.attention_check import Row, layout_of
from benchmarks.gpu.device import prepare
from benchmarks.gpu.figures import KERNELS, kernel_figure
from benchmarks.gpu.part import Part
from benchmarks.gpu.sequences import pages_for
from engine.executor import DTYPES
from engine.model_config import model_config

ROUNDS = 7


def run(part: Part) -> None:
    sizes, device = part.sizes, prepare(part.options.device)
    part.result.facts = device.facts()
    if not device.on_gpu:
        part.skip([kernel_figure(kernels) for kernels in KERNELS], "a CPU has one kind of kernel")
        return
    from engine.attention.flashinfer import FlashInferAttention

    config, prompt = model_config(sizes.model), max(sizes.prompts)
    num_pages = pages_for(prompt, sizes.page_size)
    shape = (num_pages, 1, 2, sizes.page_size, config.num_kv_heads, config.head_dim)
    pages = torch.empty(shape, dtype=DTYPES[sizes.dtype], device=device.name).normal_()
    q, k, v = (
        torch.empty(prompt, heads, config.head_dim, dtype=pages.dtype, device=device.name).normal_()
        for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    )
    for kernels in KERNELS:

        def measure(kernels: str = kernels) -> dict[str, float]:
            attention = FlashInferAttention(pages, config.num_heads, kernels)
            attention.plan(layout_of([Row(0, prompt, list(range(num_pages)))], 0, sizes.page_size))
            seconds = device.median_s(lambda: attention.run(0, q, k, v), ROUNDS, 5)
            return {kernel_figure(kernels): 1000 * seconds}

        part.step(f"{kernels}, a prompt of {prompt} (compiled first if need be)", [kernel_figure(kernels)], measure)
