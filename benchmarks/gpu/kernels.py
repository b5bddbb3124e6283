"""Attention alone: FlashInfer's two prefill kernels, and decode over three page layouts.

| layout          | storage                                        | a page of one layer                              |
| --------------- | ---------------------------------------------- | ------------------------------------------------ |
| pages_per_layer | [layer, page, 2, page_size, kv_head, head_dim] | one piece; a handoff sends one per layer         |
| layers_in_page  | [page, layer, 2, page_size, kv_head, head_dim] | one piece; all layers of a page lie together     |
| heads_outermost | [page, kv_head, layer, 2, page_size, head_dim] | a piece per head; a head's layers lie together   |

Pages are heads_outermost; the others are for comparison.
"""

from __future__ import annotations

import random

import torch

from baton.engine.executor import DTYPES
from baton.engine.model_config import ModelConfig, model_config
from benchmarks.gpu.attention_check import Row, layout_of
from benchmarks.gpu.device import Device, prepare
from benchmarks.gpu.figures import KERNELS, LAYOUTS, kernel_figure, layout_figure
from benchmarks.gpu.part import Part
from benchmarks.gpu.sequences import pages_for
from benchmarks.gpu.sizes import Sizes, label, point_name

ROUNDS = 7


def run(part: Part) -> None:
    """Measure decode with every layout, and prefill with every kernel."""
    sizes, device = part.sizes, prepare(part.options.device)
    part.result.facts = device.facts()
    if not device.on_gpu:
        part.skip([*map(kernel_figure, KERNELS), *map(layout_figure, LAYOUTS)], "a CPU has one kind of kernel")
        return
    config = model_config(sizes.model)
    part.say(f"decode of one layer at {point_name(sizes.layouts_point)}, by the layout of the pages")
    for name in LAYOUTS:

        def decode(name: str = name) -> dict[str, float]:
            return {layout_figure(name): 1000 * decode_layer_s(device, config, sizes, name, part.options.seed)}

        part.step(name, [layout_figure(name)], decode)
    prompt = max(sizes.prompts)
    for kernels in KERNELS:

        def prefill(kernels: str = kernels) -> dict[str, float]:
            return {kernel_figure(kernels): 1000 * prefill_layer_s(device, config, sizes, prompt, kernels)}

        part.step(
            f"{kernels}, a prompt of {label(prompt)} (compiled first if need be)", [kernel_figure(kernels)], prefill
        )


def laid_out(name: str, num_pages: int, config: ModelConfig, sizes: Sizes, device: Device) -> torch.Tensor:
    """Random pages as a view `[num_pages, kv_heads, num_layers, 2, page_size, head_dim]` of storage in this layout."""
    layers, heads, page_size, head_dim = config.num_layers, config.num_kv_heads, sizes.page_size, config.head_dim
    shapes = {
        "pages_per_layer": ((layers, num_pages, 2, page_size, heads, head_dim), (1, 4, 0, 2, 3, 5)),
        "layers_in_page": ((num_pages, layers, 2, page_size, heads, head_dim), (0, 4, 1, 2, 3, 5)),
        "heads_outermost": ((num_pages, heads, layers, 2, page_size, head_dim), (0, 1, 2, 3, 4, 5)),
    }
    shape, order = shapes[name]
    return torch.empty(shape, dtype=DTYPES[sizes.dtype], device=device.name).normal_().permute(order)


def _projections(tokens: int, config: ModelConfig, sizes: Sizes, device: Device) -> list[torch.Tensor]:
    """Random q, k and v."""
    return [
        torch.empty(tokens, heads, config.head_dim, dtype=DTYPES[sizes.dtype], device=device.name).normal_()
        for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    ]


@torch.inference_mode()
def decode_layer_s(device: Device, config: ModelConfig, sizes: Sizes, name: str, seed: int) -> float:
    """Seconds of one layer's append and attention over scattered pages, averaged over all layers."""
    from baton.engine.attention.flashinfer import FlashInferAttention

    batch, context = sizes.layouts_point
    used = pages_for(context, sizes.page_size)
    ids = random.Random(seed).sample(range(batch * used), batch * used)
    attention = FlashInferAttention(
        laid_out(name, batch * used, config, sizes, device), config.num_heads, max_batch=batch
    )
    rows = [Row(context - 1, 1, ids[index * used : (index + 1) * used]) for index in range(batch)]
    attention.plan(layout_of(rows, batch, sizes.page_size))
    q, k, v = _projections(batch, config, sizes, device)

    def all_layers() -> None:
        for layer in range(config.num_layers):
            attention.run(layer, q, k, v)

    return device.median_s(all_layers, ROUNDS) / config.num_layers


@torch.inference_mode()
def prefill_layer_s(device: Device, config: ModelConfig, sizes: Sizes, prompt: int, kernels: str) -> float:
    """Seconds of one layer's append and causal attention of a whole prompt."""
    from baton.engine.attention.flashinfer import FlashInferAttention

    num_pages = pages_for(prompt, sizes.page_size)
    shape = (num_pages, config.num_kv_heads, 1, 2, sizes.page_size, config.head_dim)
    pages = torch.empty(shape, dtype=DTYPES[sizes.dtype], device=device.name).normal_()
    attention = FlashInferAttention(pages, config.num_heads, kernels)
    attention.plan(layout_of([Row(0, prompt, list(range(num_pages)))], 0, sizes.page_size))
    q, k, v = _projections(prompt, config, sizes, device)
    return device.median_s(lambda: attention.run(0, q, k, v), ROUNDS, 5)
