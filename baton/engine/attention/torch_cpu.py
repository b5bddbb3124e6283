"""Paged attention with torch operations: for the CPU, and on a GPU for pages without FlashInfer kernels.

The page storage is viewed as a matrix with one row per (page, KV head, layer, K or V). Gathering a batch's rows is one
`index_select` in the order (sequence, head, page), which scaled_dot_product_attention reads without another copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from baton.engine.attention.backend import BatchLayout
from baton.engine.attention.device_backend import DeviceBackend
from baton.engine.attention.plan_metadata import PlanMetadata


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One sequence's prefill slice: rows [begin, end) of the batch, `start` positions before them."""

    begin: int
    end: int
    start: int
    rows: torch.Tensor  # Of its pages' keys, then of their values, in layer 0.
    mask: torch.Tensor | None  # [tokens, start + tokens] bool; None for plain causal attention.


class TorchAttention:
    """`AttentionBackend` for pages `[num_pages, kv_heads, num_layers, 2, page_size, head_dim]`, contiguous."""

    def __init__(self, pages: torch.Tensor, num_heads: int) -> None:
        _, self._kv_heads, num_layers, _, self._page_size, self._head_dim = pages.shape
        self._group = num_heads // self._kv_heads
        self._device = pages.device
        self._page_rows = pages.view(-1, self._page_size * self._head_dim)
        self._token_rows = pages.view(-1, self._head_dim)
        self._head_rows = torch.arange(self._kv_heads) * (2 * num_layers)  # First row of each head in page 0.
        self._rows_per_page = self._kv_heads * 2 * num_layers
        # Gathered K, then V; kept between steps, because fresh memory costs a page fault per 4 KiB.
        self._gathered = self._page_rows.new_empty(0)

    def plan(self, layout: BatchLayout) -> None:
        indices = layout.indices.long()  # The number of a page's first row may exceed int32.
        self._plan_writes(layout, indices)
        self._plan_decode(layout, indices)
        self._chunks = [
            self._plan_chunk(layout, indices, index) for index in range(layout.num_decodes, len(layout.indptr) - 1)
        ]
        self._num_decodes = layout.num_decodes

    def plan_staged(self, layout: BatchLayout, host: PlanMetadata, device: PlanMetadata) -> None:
        self.plan(layout)

    def _plan_writes(self, layout: BatchLayout, indices: torch.Tensor) -> None:
        counts = layout.qo_indptr.diff()
        first_page = torch.repeat_interleave(layout.indptr[:-1], counts)
        pages = indices[first_page + layout.positions // self._page_size]
        rows = self._rows_of(pages.unsqueeze(1)).squeeze(2) * self._page_size
        self._write_rows = (rows + (layout.positions % self._page_size).unsqueeze(1)).flatten().to(self._device)

    def _rows_of(self, pages: torch.Tensor) -> torch.Tensor:
        """The rows `[n, kv_heads, pages]` of the keys of pages `[n, pages]` in layer 0; a row of values is the next."""
        return pages.unsqueeze(1) * self._rows_per_page + self._head_rows.view(1, -1, 1)

    def _gathered_rows(self, pages: torch.Tensor) -> torch.Tensor:
        """The rows of the keys of pages `[n, pages]` in layer 0, then of the values, in the order of `_gather`."""
        keys = self._rows_of(pages).flatten()
        return torch.cat((keys, keys + 1)).to(self._device)

    def _plan_decode(self, layout: BatchLayout, indices: torch.Tensor) -> None:
        """Build a rectangle of page ids, without a loop over sequences: short tables are padded with page 0, masked."""
        count = layout.num_decodes
        if not count:
            return
        num_pages = layout.indptr[: count + 1].diff()
        width = int(num_pages.max())
        used = torch.arange(width) < num_pages.unsqueeze(1)
        table = torch.zeros(count, width, dtype=torch.int64)
        table[used] = indices[: int(layout.indptr[count])]
        lengths = (num_pages - 1) * self._page_size + layout.last_page_len[:count]
        self._decode_rows = self._gathered_rows(table)
        mask = torch.arange(width * self._page_size) < lengths.unsqueeze(1)
        self._decode_mask = mask.view(count, 1, 1, -1).to(self._device)

    def _plan_chunk(self, layout: BatchLayout, indices: torch.Tensor, index: int) -> _Chunk:
        begin, end = int(layout.qo_indptr[index]), int(layout.qo_indptr[index + 1])
        start, count = int(layout.positions[begin]), end - begin
        pages = indices[int(layout.indptr[index]) : int(layout.indptr[index + 1])]
        mask = None
        if start:
            mask = torch.ones(count, start + count, dtype=torch.bool, device=self._device).tril_(start)
        return _Chunk(begin, end, start, self._gathered_rows(pages.unsqueeze(0)), mask)

    def run(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        rows = self._write_rows + 2 * layer * self._page_size
        self._token_rows.index_copy_(0, rows, k.flatten(0, 1))
        self._token_rows.index_copy_(0, rows + self._page_size, v.flatten(0, 1))
        if not self._chunks:
            return self._decode(layer, q)
        out = torch.empty_like(q)
        if self._num_decodes:
            out[: self._num_decodes] = self._decode(layer, q[: self._num_decodes])
        for chunk in self._chunks:
            part = slice(chunk.begin, chunk.end)
            out[part] = self._prefill(layer, chunk, q[part], k[part], v[part])
        return out

    def _decode(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """One query per sequence. Heads that share a KV head become query positions, so K and V are not repeated."""
        count = q.shape[0]
        k, v = self._gather(self._decode_rows + 2 * layer, count)
        grouped = q.view(count, self._kv_heads, self._group, self._head_dim)
        out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=self._decode_mask)
        return out.reshape(count, -1, self._head_dim)

    def _prefill(self, layer: int, chunk: _Chunk, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if chunk.mask is not None:
            gathered = self._gather(chunk.rows + 2 * layer, 1)
            keys, values = (side[:, :, : chunk.start + q.shape[0]] for side in gathered)
        else:
            keys, values = k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),
            keys,
            values,
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            enable_gqa=self._group > 1,
        )
        return out[0].transpose(0, 1)

    def _gather(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """K and V of whole pages of `count` sequences: `[2, count, kv_heads, positions, head_dim]`.

        Valid until the next call.
        """
        if self._gathered.shape[0] < len(rows):
            self._gathered = self._page_rows.new_empty(len(rows), self._page_rows.shape[1])
        gathered = self._gathered[: len(rows)]
        torch.index_select(self._page_rows, 0, rows, out=gathered)
        return gathered.view(2, count, self._kv_heads, -1, self._head_dim)


BACKEND = DeviceBackend(
    supports=lambda dtype, head_dim: True,
    workspace_bytes=lambda device, max_batch, num_heads, layout: 0,
    open=lambda pages, num_heads, kernels, max_batch: TorchAttention(pages, num_heads),
    record=None,
)
