"""Stages the arrays of decode steps for recorded computations: padded to a size, at fixed addresses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from baton.engine.attention.backend import BatchLayout
from baton.engine.attention.plan_metadata import PlanMetadata, empty_decodes, pad_decodes, plan_metadata
from baton.engine.graph_sizes import padded_size
from baton.engine.staging import StagingBuffer

MAX_INDICES = 1 << 22  # Page ids of one step, 16 MiB. A batch with more runs without a graph.


class DecodeStaging:
    """One buffer for batches of any of the ascending `sizes`; one step at a time is in flight to the device.

    `padding_page` is a page outside the pool.
    """

    def __init__(self, device: torch.device, sizes: Sequence[int], pages_per_sequence: int, padding_page: int) -> None:
        self._sizes = tuple(sizes)
        self._padding_page = padding_page
        largest = self._sizes[-1]
        self._num_indices = min(largest * pages_per_sequence, MAX_INDICES)
        self._buffer = StagingBuffer(device, 5 * (largest + 8) + 16 + self._num_indices)

    def put(self, token_ids: torch.Tensor, layout: BatchLayout) -> tuple[int, PlanMetadata] | None:
        """Queue the copy of a batch of decodes, once the device has read the previous one.

        Returns the size that it was padded to and its metadata in pinned memory; None for too large a batch.
        """
        count = layout.num_decodes
        size = padded_size(count, self._sizes)
        if size is None or len(layout.indices) + size - count > self._num_indices:
            return None
        tokens, padded = pad_decodes(token_ids, layout, size, self._padding_page)
        places = self._buffer.write([tokens, *plan_metadata(padded).tensors])
        return size, PlanMetadata.of(self._buffer.on_host(places[1:]))

    def places(self, size: int) -> tuple[torch.Tensor, PlanMetadata, PlanMetadata]:
        """Stage a batch that is all padding; returns (token ids and metadata on the device, metadata in pinned memory).

        Every batch of this size is staged at the same device addresses. `indices` there has the maximum length.
        """
        tokens, layout = empty_decodes(size, self._padding_page)
        host, device = self._buffer.put([tokens, *plan_metadata(layout).tensors])
        there = PlanMetadata.of([*device[1:-1], self._buffer.rest_from(device[-1], self._num_indices)])
        return device[0], there, PlanMetadata.of(host[1:])
