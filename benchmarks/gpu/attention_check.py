"""Checks paged attention over random ragged batches against float64 on the CPU."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate

import torch

from baton.engine.attention.backend import BatchLayout
from baton.engine.executor import DTYPES
from benchmarks.gpu.device import Device, attention_over

LAYERS = 3
NUM_PAGES = 512


@dataclass(frozen=True, slots=True)
class Geometry:
    """The shape of heads and pages."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: str


@dataclass(slots=True, eq=False)
class Row:
    """One sequence of a batch: `start` positions before its `count` new tokens, and its pages."""

    start: int
    count: int
    pages: list[int]

    @property
    def end(self) -> int:
        return self.start + self.count


def ragged_batch(rng: random.Random, page_size: int) -> tuple[list[Row], int]:
    """(rows, number of decodes): random decodes, then random chunks, in random pages."""
    free = rng.sample(range(NUM_PAGES), NUM_PAGES)
    rows: list[Row] = []
    decodes, chunks = rng.randint(0, 9), rng.randint(0, 4)
    if decodes + chunks == 0:
        decodes = chunks = 1
    for index in range(decodes + chunks):
        start, count = (rng.randint(1, 600), 1) if index < decodes else (rng.choice([0, rng.randint(1, 300)]), 0)
        count = count or rng.randint(2, 300)
        used = -(-(start + count) // page_size)
        rows.append(Row(start, count, [free.pop() for _ in range(used)]))
    return rows, decodes


def layout_of(rows: list[Row], num_decodes: int, page_size: int) -> BatchLayout:
    """The layout of these rows, of which the first `num_decodes` decode."""
    return BatchLayout(
        qo_indptr=_int32([0, *accumulate(row.count for row in rows)]),
        indptr=_int32([0, *accumulate(len(row.pages) for row in rows)]),
        indices=_int32([page for row in rows for page in row.pages]),
        last_page_len=_int32([row.end - (len(row.pages) - 1) * page_size for row in rows]),
        positions=_int32([position for row in rows for position in range(row.start, row.end)]),
        num_decodes=num_decodes,
    )


def _int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def attention_error(device: Device, geometry: Geometry, batches: int, seed: int, kernels: str = "fa2") -> float:
    """The largest ‖out − ref‖ / ‖ref‖ over `batches` batches, each on two layers of new random pages.

    Raises `ValueError` when a page has wrong contents afterwards.
    """
    rng, worst = random.Random(seed), 0.0
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_PAGES, geometry.num_kv_heads, LAYERS, 2, geometry.page_size, geometry.head_dim)
    dtype = DTYPES[geometry.dtype]
    pages = torch.empty(shape, dtype=dtype, device=device.name)
    backend = attention_over(device, pages, geometry.num_heads, kernels)
    for _ in range(batches):
        before = torch.empty(shape).normal_(generator=generator).to(dtype)
        pages.copy_(before)
        rows, num_decodes = ragged_batch(rng, geometry.page_size)
        backend.plan(layout_of(rows, num_decodes, geometry.page_size))
        expected_pages = before.clone()
        for layer in (0, LAYERS - 1):
            tokens = sum(row.count for row in rows)
            q, k, v = (
                torch.empty(tokens, heads, geometry.head_dim).normal_(generator=generator).to(dtype)
                for heads in (geometry.num_heads, geometry.num_kv_heads, geometry.num_kv_heads)
            )
            with torch.inference_mode():
                out = backend.run(layer, *(tensor.to(device.name) for tensor in (q, k, v))).cpu().double()
            reference = reference_attention(expected_pages, layer, rows, q, k, v)
            error = float((out - reference).norm() / reference.norm())
            worst = max(worst, error) if error == error else float("inf")  # not a number never passes
        if not torch.equal(pages.cpu(), expected_pages):
            raise ValueError("Pages hold something else than what the step wrote into them.")
    return worst


def reference_attention(
    pages: torch.Tensor, layer: int, rows: list[Row], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """The definition in float64; writes k and v into `pages` as the step does."""
    group, page_size = q.shape[1] // k.shape[1], pages.shape[4]
    outs, first = [], 0
    for row in rows:
        part = slice(first, first + row.count)
        first += row.count
        for side, new in ((0, k[part]), (1, v[part])):
            positions = torch.arange(row.start, row.end)
            table = torch.tensor(row.pages)[positions // page_size]
            pages[table, :, layer, side, positions % page_size] = new
        stored = pages[row.pages, :, layer].permute(0, 2, 3, 1, 4).double()  # [pages, 2, page_size, kv_heads, head_dim]
        keys, values = (stored[:, side].flatten(0, 1)[: row.end].repeat_interleave(group, dim=1) for side in (0, 1))
        scores = torch.einsum("qhd,khd->hqk", q[part].double(), keys) / q.shape[2] ** 0.5
        future = torch.arange(row.end) > torch.arange(row.start, row.end).unsqueeze(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        outs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outs)
