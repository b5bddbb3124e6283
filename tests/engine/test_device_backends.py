"""Every attention backend in the table keeps its contract, computed on the CPU."""

from __future__ import annotations

import sys

import pytest
import torch

from baton.engine.attention import flashinfer
from baton.engine.attention.device_backends import BACKENDS, device_backend
from baton.engine.attention.plan_metadata import PlanMetadata, plan_metadata
from baton.engine.decode_staging import DecodeStaging
from baton.engine.step_arrays import step_arrays
from baton.protocol.worker import PageLayout
from tests.engine import flashinfer_reference
from tests.engine.batches import Ragged, filled_pages, full_attention

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 64
PAGE_SIZE = 4


@pytest.fixture(autouse=True)
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer_reference)
    monkeypatch.setattr(flashinfer, "KERNEL_DTYPES", (torch.float32,))


def _qkv(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    both = torch.randn(rows, HEADS + 2 * KV_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))
    return both[:, :HEADS], both[:, HEADS : HEADS + KV_HEADS], both[:, HEADS + KV_HEADS :]


@pytest.mark.parametrize("name", BACKENDS)
def test_steps_planned_from_staged_metadata_are_full_attention(name: str) -> None:
    backend = BACKENDS[name]
    assert backend.supports(torch.float32, HEAD_DIM)
    for batch in (Ragged((5, 1, 17), ((0, 6), (9, 3)), PAGE_SIZE, 1), Ragged((8, 3), (), PAGE_SIZE, 2)):
        pages = filled_pages(batch, LAYERS, KV_HEADS, HEAD_DIM, torch.float32)
        attention, layout = backend.open(pages, HEADS, "fa2", 8), batch.layout()
        metadata = plan_metadata(layout)
        attention.plan_staged(layout, metadata, PlanMetadata.of([array.clone() for array in metadata.tensors]))
        for layer in range(LAYERS):
            q, k, v = _qkv(len(layout.positions), layer)
            expected = full_attention(batch, pages, layer, q, k, v)
            assert torch.allclose(attention.run(layer, q, k, v).double(), expected, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, backend in BACKENDS.items() if backend.record is not None])
def test_recorded_decode_steps_of_several_sizes_are_full_attention(name: str) -> None:
    backend, batch = BACKENDS[name], Ragged((5, 1, 17), (), PAGE_SIZE, 3)
    filled = filled_pages(batch, LAYERS, KV_HEADS, HEAD_DIM, torch.float32)
    pages = torch.cat((filled, torch.zeros(1, *filled.shape[1:])))  # the last page is for padding
    staging = DecodeStaging(torch.device("cpu"), (3, 4), 10, batch.num_pages)
    assert backend.record is not None
    recording, recorded = backend.record(backend.open(pages, HEADS, "fa2", 8)), {}
    for size in (4, 3):
        _, places, host = staging.places(size)
        recorded[size] = recording(places)
        recorded[size].plan_staged(host)
    for decodes in ((5, 1, 17), (9, 2, 4)):
        batch = Ragged(decodes, (), PAGE_SIZE, 3)
        token_ids, _, layout = step_arrays(batch.plan(), PAGE_SIZE).tensors()
        staged = staging.put(token_ids, layout)
        assert staged is not None
        recorded[staged[0]].plan_staged(staged[1])
        q, k, v = _qkv(3, sum(decodes))
        expected = full_attention(batch, pages, 1, q, k, v)
        assert torch.allclose(recorded[staged[0]].run(1, q, k, v).double(), expected, atol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_larger_batch_takes_no_smaller_workspace(name: str) -> None:
    layout = PageLayout(100, LAYERS, PAGE_SIZE, KV_HEADS, HEAD_DIM, "float32", "m")
    small, large = (BACKENDS[name].workspace_bytes(torch.device("cpu"), batch, HEADS, layout) for batch in (8, 8192))
    assert 0 <= small <= large


def test_attention_without_kernels_uses_torch() -> None:
    assert device_backend(torch.float32, HEAD_DIM) is BACKENDS["flashinfer"]
    for dtype, head_dim in ((torch.float64, 64), (torch.float32, 32)):
        assert device_backend(dtype, head_dim) is BACKENDS["torch"]
