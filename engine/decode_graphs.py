"""Decode steps at fixed batch sizes, each recorded once and replayed with other tokens.

A batch is padded to the next size. Rows that pad it write and read a page of their own, which no pool hands out. All
sizes share one staging buffer, one output and one pool of temporary memory, because one step runs at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine.attention.backend import BatchLayout
from engine.attention.flashinfer import FlashInferAttention, GraphDecodeAttention, graph_ints
from engine.attention.plan_metadata import PlanMetadata, empty_decodes, pad_decodes, plan_metadata
from engine.graph_sizes import padded_size
from engine.models.decoder import Decoder
from engine.recorded_step import Recorder, Replay
from engine.staging import StagingBuffer

Progress = Callable[[int, int], None]
MAX_INDICES = 1 << 22  # page ids of one step, 16 MiB: a batch with more runs without a graph


@dataclass(frozen=True, slots=True)
class _Step:
    attention: GraphDecodeAttention
    replay: Replay


class DecodeGraphs:
    """Recorded decode steps of a model, for each of the ascending `sizes`."""

    def __init__(
        self,
        model: Decoder,
        attention: FlashInferAttention,
        sizes: Sequence[int],
        pages_per_sequence: int,
        padding_page: int,
        progress: Progress | None = None,
    ) -> None:
        """`progress` hears (sizes recorded, sizes in all)."""
        self._model, self._attention = model, attention
        self._sizes = tuple(sizes)
        self._padding_page = padding_page
        device, largest = attention.device, self._sizes[-1]
        self._num_indices = min(largest * pages_per_sequence, MAX_INDICES)
        self._staging = StagingBuffer(device, 5 * (largest + 8) + 16 + self._num_indices)
        self._logits = torch.empty(largest, model.config.vocab_size, dtype=torch.float32, device=device)
        self._ints = graph_ints(device)
        self._recorder = Recorder(device)
        self._steps: dict[int, _Step] = {}
        # Largest first: the smaller ones then fit into the temporary memory that it took.
        for done, size in enumerate(reversed(self._sizes)):
            self._steps[size] = self._record(size)
            if progress is not None:
                progress(done + 1, len(self._sizes))

    def logits(self, token_ids: torch.Tensor, layout: BatchLayout) -> torch.Tensor | None:
        """Logits `[n, vocab]` float32 of a batch of n decodes, valid until the next step; None where no size holds it.

        The step before must have ended on the device.
        """
        count = layout.num_decodes
        size = padded_size(count, self._sizes)
        if size is None or len(layout.indices) + size - count > self._num_indices:
            return None
        step = self._steps[size]
        tokens, padded = pad_decodes(token_ids, layout, size, self._padding_page)
        host, _ = self._staging.put([tokens, *plan_metadata(padded).tensors])
        step.attention.plan_staged(PlanMetadata.of(host[1:]))
        step.replay()
        return self._logits[:count]

    def _record(self, size: int) -> _Step:
        tokens, layout = empty_decodes(size, self._padding_page)
        metadata = plan_metadata(layout)
        host, device = self._staging.put([tokens, *metadata.tensors])
        places = PlanMetadata.of([*device[1:-1], self._staging.rest_from(device[-1], self._num_indices)])
        attention = GraphDecodeAttention(self._attention, places, self._ints)
        attention.plan_staged(PlanMetadata.of(host[1:]))

        def compute() -> torch.Tensor:
            return self._model.forward(device[0], places.positions, None, attention, self._logits[:size])

        return _Step(attention, self._recorder.record(compute))
