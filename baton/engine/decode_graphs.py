"""Decode steps at fixed batch sizes, each recorded once and replayed with other tokens.

A batch is padded to the next size. Padding rows write and read their own page, which is in no pool. All sizes share
one staging buffer, one output and one pool of temporary memory, because one step runs at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from baton.engine.attention.backend import BatchLayout
from baton.engine.attention.device_backend import RecordedAttention, Recording
from baton.engine.decode_staging import DecodeStaging
from baton.engine.models.decoder import Decoder
from baton.engine.recorded_step import Recorder, Replay

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Step:
    attention: RecordedAttention
    replay: Replay


class DecodeGraphs:
    """Recorded decode steps of a model, for each of the ascending `sizes`."""

    def __init__(
        self,
        model: Decoder,
        recording: Recording,
        sizes: Sequence[int],
        pages_per_sequence: int,
        padding_page: int,
        progress: Progress | None = None,
    ) -> None:
        """`progress` receives (recorded sizes, total)."""
        self._model, self._recording = model, recording
        device, largest = model.embed.device, sizes[-1]
        self._staging = DecodeStaging(device, sizes, pages_per_sequence, padding_page)
        self._logits = torch.empty(largest, model.config.vocab_size, dtype=torch.float32, device=device)
        self._recorder = Recorder(device)
        self._steps: dict[int, _Step] = {}
        # The largest first, because the others fit into its temporary memory.
        for done, size in enumerate(reversed(sizes)):
            self._steps[size] = self._record(size)
            if progress is not None:
                progress(done + 1, len(sizes))

    def logits(self, token_ids: torch.Tensor, layout: BatchLayout) -> torch.Tensor | None:
        """Logits `[n, vocab]` float32 of a batch of n decodes, valid until the next step; None for too large a batch.

        The previous step must have ended on the device.
        """
        staged = self._staging.put(token_ids, layout)
        if staged is None:
            return None
        size, metadata = staged
        step = self._steps[size]
        step.attention.plan_staged(metadata)
        step.replay()
        return self._logits[: layout.num_decodes]

    def _record(self, size: int) -> _Step:
        token_ids, there, metadata = self._staging.places(size)
        attention = self._recording(there)
        attention.plan_staged(metadata)

        def compute() -> torch.Tensor:
            return self._model.forward(token_ids, there.positions, None, attention, self._logits[:size])

        return _Step(attention, self._recorder.record(compute))
