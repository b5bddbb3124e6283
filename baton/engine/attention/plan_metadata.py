"""A ragged batch in the form that FlashInfer's kernels read: int32 arrays, decodes before prefill chunks.

Both kernels work on slices of the same arrays. Only the prefill part needs its two indptr arrays shifted to begin at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from baton.engine.attention.backend import BatchLayout


@dataclass(frozen=True, slots=True)
class PlanMetadata:
    """The arrays of n sequences, of which the first d decode, with t tokens: all int32 on one device.

    `indices` is last because the lengths of the other arrays follow from n, d and t alone.

    | field             | shape       | meaning                                                              |
    | ----------------- | ----------- | -------------------------------------------------------------------- |
    | positions         | [t]         | each row's position in its sequence: where its K and V go, its angle |
    | batch_indices     | [t]         | each row's sequence                                                  |
    | indptr            | [n + 1]     | sequence i's pages are indices[indptr[i]:indptr[i+1]]                |
    | last_page_len     | [n]         | positions used in its last page, after this step                     |
    | prefill_qo_indptr | [n - d + 1] | rows of the prefill chunks, counted from the first chunk's first row |
    | prefill_indptr    | [n - d + 1] | their pages, counted from the first chunk's first page               |
    | indices           | [pages]     | page ids                                                             |
    """

    positions: torch.Tensor
    batch_indices: torch.Tensor
    indptr: torch.Tensor
    last_page_len: torch.Tensor
    prefill_qo_indptr: torch.Tensor
    prefill_indptr: torch.Tensor
    indices: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The arrays in the order of the table."""
        return tuple(getattr(self, item.name) for item in fields(self))

    @staticmethod
    def of(tensors: Sequence[torch.Tensor]) -> PlanMetadata:
        """The inverse of `tensors`, for copies in other memory."""
        return PlanMetadata(*tensors)


def plan_metadata(layout: BatchLayout) -> PlanMetadata:
    """The arrays of a step, on the CPU."""
    decodes = layout.num_decodes
    qo_indptr, indptr = layout.qo_indptr.numpy(), layout.indptr.numpy()  # Faster than torch for small arrays.
    rows = np.arange(len(qo_indptr) - 1, dtype=np.int32).repeat(qo_indptr[1:] - qo_indptr[:-1])
    return PlanMetadata(
        positions=layout.positions,
        batch_indices=torch.from_numpy(rows),
        indptr=layout.indptr,
        last_page_len=layout.last_page_len,
        prefill_qo_indptr=torch.from_numpy(qo_indptr[decodes:] - qo_indptr[decodes]),
        prefill_indptr=torch.from_numpy(indptr[decodes:] - indptr[decodes]),
        indices=layout.indices,
    )


def pad_decodes(token_ids: torch.Tensor, layout: BatchLayout, size: int, page: int) -> tuple[torch.Tensor, BatchLayout]:
    """A batch of decodes padded to `size` sequences.

    The added sequences have token 0 at position 0 of `page`, which must belong to no sequence. All of them write the
    same KV there, and read only that position.
    """
    extra = size - layout.num_decodes
    if extra == 0:
        return token_ids, layout
    nothing = torch.zeros(extra, dtype=torch.int32)
    more = torch.arange(1, extra + 1, dtype=torch.int32)
    padded = BatchLayout(
        qo_indptr=torch.arange(size + 1, dtype=torch.int32),
        indptr=torch.cat((layout.indptr, layout.indptr[-1] + more)),
        indices=torch.cat((layout.indices, torch.full((extra,), page, dtype=torch.int32))),
        last_page_len=torch.cat((layout.last_page_len, nothing + 1)),
        positions=torch.cat((layout.positions, nothing)),
        num_decodes=size,
    )
    return torch.cat((token_ids, nothing)), padded


def empty_decodes(size: int, page: int) -> tuple[torch.Tensor, BatchLayout]:
    """A batch of `size` decodes that are all padding."""
    none = torch.zeros(0, dtype=torch.int32)
    start = torch.zeros(1, dtype=torch.int32)
    return pad_decodes(none, BatchLayout(start, start, none, none, none, 0), size, page)


def workspace_bytes(max_batch: int, num_heads: int, kv_heads: int, head_dim: int, num_sms: int) -> int:
    """Bytes for partial results when keys are split over thread blocks: float32 values and a weight per head and row.

    From `PrefillPlan` and `DecodePlan` of FlashInfer 0.6.6: a captured decode step is planned for up to two tiles per
    sequence, or for two blocks per multiprocessor; a prefill step for the latter, with 128 rows per tile.
    """
    group = num_heads // kv_heads
    tile = 16 if group <= 16 else 64 if group <= 64 else 128
    blocks = -(-2 * num_sms // kv_heads)
    rows = max(max(2 * max_batch, blocks) * tile, blocks * 128, 16 * num_sms)
    return max(128 << 20, num_heads * rows * (head_dim + 1) * 4)
