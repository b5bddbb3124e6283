"""FlashInfer's attention over strided pages against float64 on the CPU."""

from __future__ import annotations

import pytest
import torch

from baton.engine.attention.flashinfer import FlashInferAttention
from tests.engine.batches import filled_pages, full_attention
from tests.gpu.cases import BATCHES, CASES, Case

LAYERS = 3


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ragged_batches_over_strided_pages(device: torch.device, case: Case) -> None:
    batch, (num_heads, kv_heads), head_dim, dtype = BATCHES[case.batch], case.heads, case.head_dim, case.dtype
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


@pytest.mark.fa3
def test_fa3_prefills_as_fa2_does(device: torch.device) -> None:
    if torch.cuda.get_device_capability(device)[0] != 9:
        pytest.skip("fa3 needs a Hopper GPU")
    batch = BATCHES["prefill"]
    pages = filled_pages(batch, 1, 2, 128, torch.bfloat16)
    attention = FlashInferAttention(pages.to(device), 8, "fa3")
    layout = batch.layout()
    attention.plan(layout)
    qkv = torch.randn(len(layout.positions), 12, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = full_attention(batch, pages, 0, *qkv.split((8, 2, 2), dim=1))
    got = attention.run(0, *qkv.to(device).split((8, 2, 2), dim=1)).cpu().double()
    assert (got - expected).norm() / expected.norm() < 1e-2
