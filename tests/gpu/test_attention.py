"""FlashInfer's attention over strided pages against float64 on the CPU."""

from __future__ import annotations

import pytest
import torch

from engine.attention.flashinfer import FlashInferAttention
from tests.engine.batches import Ragged, filled_pages, full_attention

LAYERS = 3
BATCHES = [
    Ragged((5, 1, 17, 900), (), 16, 1),
    Ragged((), ((0, 200), (33, 70), (500, 1)), 16, 2),
    Ragged((64, 63, 65), ((0, 17), (129, 300)), 16, 3),
    Ragged((3, 40), ((7, 20),), 1, 4),
]


@pytest.mark.parametrize("batch", BATCHES, ids=["decode", "prefill", "mixed", "pages of one"])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (16, 2), (7, 1)], ids=lambda heads: f"{heads[0]}:{heads[1]}")
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ragged_batches_over_strided_pages(
    device: torch.device, batch: Ragged, heads: tuple[int, int], head_dim: int, dtype: torch.dtype
) -> None:
    num_heads, kv_heads = heads
    pages = filled_pages(batch, LAYERS, kv_heads, head_dim, dtype)
    there = pages.to(device)
    attention = FlashInferAttention(there, num_heads)
    layout = batch.layout()
    attention.plan(layout)
    for layer in range(LAYERS):
        generator = torch.Generator().manual_seed(layer)
        shape = (len(layout.positions), num_heads + 2 * kv_heads, head_dim)
        qkv = torch.randn(shape, generator=generator).to(dtype)
        q, k, v = qkv.split((num_heads, kv_heads, kv_heads), dim=1)
        expected = full_attention(batch, pages, layer, q, k, v)
        got = attention.run(layer, *qkv.to(device).split((num_heads, kv_heads, kv_heads), dim=1)).cpu().double()
        assert (got - expected).norm() / expected.norm() < 1e-2


@pytest.mark.parametrize("kernels", ["fa2", "fa3"])
def test_prefill_kernels_by_name(device: torch.device, kernels: str) -> None:
    if kernels == "fa3" and torch.cuda.get_device_capability(device)[0] != 9:
        pytest.skip("fa3 needs a Hopper GPU")
    batch = BATCHES[1]
    pages = filled_pages(batch, 1, 2, 128, torch.bfloat16)
    attention = FlashInferAttention(pages.to(device), 8, kernels)
    layout = batch.layout()
    attention.plan(layout)
    qkv = torch.randn(len(layout.positions), 12, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = full_attention(batch, pages, 0, *qkv.split((8, 2, 2), dim=1))
    got = attention.run(0, *qkv.to(device).split((8, 2, 2), dim=1)).cpu().double()
    assert (got - expected).norm() / expected.norm() < 1e-2
