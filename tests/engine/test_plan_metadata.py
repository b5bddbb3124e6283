"""The metadata given to FlashInfer's kernels describes the intended batch."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baton.engine.attention.flashinfer import FlashInferAttention, GraphDecodeAttention, graph_ints
from baton.engine.attention.plan_metadata import pad_decodes, plan_metadata, workspace_bytes
from baton.engine.attention.torch_cpu import TorchAttention
from baton.engine.decode_staging import DecodeStaging
from baton.engine.staging import GrowingStagingBuffer
from baton.engine.step_arrays import step_arrays
from tests.engine import flashinfer_reference
from tests.engine.batches import Ragged, filled_pages, full_attention, ragged_batches

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 8
MIXED = Ragged((5, 1, 17), ((0, 6), (9, 3)), 4, 1)


@pytest.fixture(autouse=True)
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer_reference)


def _qkv(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slices of one projection, as in the model."""
    both = torch.randn(rows, HEADS + 2 * KV_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))
    return both[:, :HEADS], both[:, HEADS : HEADS + KV_HEADS], both[:, HEADS + KV_HEADS :]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=ragged_batches())
def test_attention_by_the_metadata_equals_full_attention_and_torch_attention(batch: Ragged) -> None:
    pages = filled_pages(batch, LAYERS, KV_HEADS, HEAD_DIM, torch.float32)
    others = pages.clone()
    layout = batch.layout()
    attention, torchs = FlashInferAttention(pages, HEADS), TorchAttention(others, HEADS)
    attention.plan(layout)
    torchs.plan(layout)
    for layer in range(LAYERS):
        q, k, v = _qkv(len(layout.positions), layer)
        expected = full_attention(batch, pages, layer, q, k, v)
        got = attention.run(layer, q, k, v)
        assert torch.allclose(got.double(), expected, atol=1e-5)
        assert torch.allclose(got, torchs.run(layer, q, k, v), atol=1e-5)
    assert torch.equal(pages, others), "both wrote the same keys and values to the same places, and nothing else"


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=ragged_batches(), second=ragged_batches())
def test_a_step_is_planned_after_any_other_step(first: Ragged, second: Ragged) -> None:
    """Steps after the first are planned by another method."""
    second = replace(second, page_size=first.page_size)
    room = max(first.num_pages, second.num_pages)
    storage = torch.zeros(room, KV_HEADS, 1, 2, first.page_size, HEAD_DIM)
    attention = FlashInferAttention(storage, HEADS)
    for batch in (first, second, first):
        filled = filled_pages(batch, 1, KV_HEADS, HEAD_DIM, torch.float32)
        storage[: batch.num_pages] = filled
        layout = batch.layout()
        attention.plan(layout)
        q, k, v = _qkv(len(layout.positions), 0)
        expected = full_attention(batch, filled, 0, q, k, v)
        assert torch.allclose(attention.run(0, q, k, v).double(), expected, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(batch=ragged_batches())
def test_the_parts_agree_with_the_layout(batch: Ragged) -> None:
    layout = batch.layout()
    metadata = plan_metadata(layout)
    assert all(array.dtype == torch.int32 for array in metadata.tensors)
    rows = [row for row, (_, count) in enumerate(batch.spans) for _ in range(count)]
    assert metadata.batch_indices.tolist() == rows
    assert metadata.positions.tolist() == [start + token for start, count in batch.spans for token in range(count)]
    assert metadata.prefill_qo_indptr.diff().tolist() == [count for _, count in batch.chunks]
    lengths = (metadata.indptr.diff() - 1) * batch.page_size + metadata.last_page_len
    assert lengths.tolist() == [start + count for start, count in batch.spans]
    assert metadata.prefill_indptr.diff().tolist() == metadata.indptr.diff().tolist()[len(batch.decodes) :]


@pytest.mark.parametrize("size", [3, 4, 7])
def test_padding_changes_nothing_for_decoding_sequences(size: int) -> None:
    batch = Ragged((5, 1, 17), (), 4, 2)
    padding_page = batch.num_pages
    filled = filled_pages(batch, 1, KV_HEADS, HEAD_DIM, torch.float32)
    storage = torch.cat([filled, torch.zeros(1, *filled.shape[1:])])
    token_ids, _, layout = step_arrays(batch.plan(), 4).tensors()
    padded_ids, padded = pad_decodes(token_ids, layout, size, padding_page)
    assert len(padded_ids) == len(padded.positions) == len(padded.last_page_len) == size
    attention = FlashInferAttention(storage, HEADS)
    q, k, v = _qkv(size, 3)
    attention.plan(layout)
    expected = attention.run(0, q[:3], k[:3], v[:3])
    kept = storage[:padding_page].clone()
    attention.plan(padded)
    assert torch.equal(attention.run(0, q, k, v)[:3], expected)
    assert torch.equal(storage[:padding_page], kept), "padding is written to its own page only"


def test_a_captured_step_reads_only_staged_arrays() -> None:
    """A step is planned for padding only, then replayed for other batches; its tensors are never replaced."""
    batch = Ragged((5, 1, 17), (), 4, 2)
    filled = filled_pages(batch, 1, KV_HEADS, HEAD_DIM, torch.float32)
    storage = torch.cat([filled, torch.zeros(1, *filled.shape[1:])])
    staging = DecodeStaging(torch.device("cpu"), (2, 4, 8), 10, batch.num_pages)
    attention = FlashInferAttention(storage, HEADS)
    tokens, places, host = staging.places(4)
    graph = GraphDecodeAttention(attention, places, graph_ints(attention.device))
    graph.plan_staged(host)
    q, k, v = _qkv(4, 5)
    for seed in (2, 3):
        token_ids, _, layout = step_arrays(Ragged((5, 1, 17), (), 4, seed).plan(), 4).tensors()
        staged = staging.put(token_ids, layout)
        assert staged is not None
        assert staged[0] == 4
        assert tokens.tolist() == [*token_ids.tolist(), 0]
        graph.plan_staged(staged[1])
        got = graph.run(0, q, k, v)
        attention.plan(layout)
        assert torch.equal(got[:3], attention.run(0, q[:3], k[:3], v[:3]))


@settings(deadline=None, max_examples=60)
@given(batch=ragged_batches(), sizes=st.sets(st.integers(1, 6), min_size=1), pages_each=st.integers(1, 12))
def test_staged_decodes_are_the_padded_batch_at_the_places_of_its_size(
    batch: Ragged, sizes: set[int], pages_each: int
) -> None:
    decodes = Ragged(batch.decodes or (3,), (), batch.page_size, batch.seed)
    count, padding_page = len(decodes.decodes), decodes.num_pages
    token_ids, _, layout = step_arrays(decodes.plan(), decodes.page_size).tensors()
    staging = DecodeStaging(torch.device("cpu"), sorted(sizes), pages_each, padding_page)
    size = next((size for size in sorted(sizes) if size >= count), None)
    if size is None or len(layout.indices) + size - count > max(sizes) * pages_each:
        assert staging.put(token_ids, layout) is None
        return
    tokens_there, there, _ = staging.places(size)
    staged = staging.put(token_ids, layout)
    assert staged is not None
    assert staged[0] == size
    padded_ids, padded = pad_decodes(token_ids, layout, size, padding_page)
    assert torch.equal(tokens_there, padded_ids)
    expected = plan_metadata(padded).tensors
    for host, device, value in zip(staged[1].tensors, there.tensors, expected, strict=True):
        assert torch.equal(host, value)
        assert torch.equal(device[: len(value)], value)


def test_staged_arrays_hold_what_was_put_at_offsets_that_later_arrays_do_not_change() -> None:
    staging = GrowingStagingBuffer(torch.device("cpu"), capacity=8)
    arrays = plan_metadata(MIXED.layout()).tensors
    host, device = staging.put(arrays)
    for one, here, there in zip(arrays, host, device, strict=True):
        assert torch.equal(one, here)
        assert torch.equal(one, there)
    before = [there.storage_offset() for there in device]
    _, longer = staging.put([*arrays[:-1], torch.zeros(len(arrays[-1]) + 9, dtype=torch.int32)])
    assert [there.storage_offset() for there in longer] == before


def test_the_workspace_suffices_for_flashinfers_plans() -> None:
    """FlashInfer's own checks: a captured decode step takes heads x tiles x rows of a tile x (head_dim + 1) floats."""
    for heads, kv_heads, batch, sms in ((32, 8, 256, 132), (64, 8, 256, 132), (32, 32, 512, 144), (48, 1, 64, 108)):
        group = heads // kv_heads
        tile = 16 if group <= 16 else 64
        tiles = max(-(-batch * group // tile) + batch - 1, 2 * sms // kv_heads)
        assert workspace_bytes(batch, heads, kv_heads, 128, sms) >= heads * tiles * tile * 129 * 4
