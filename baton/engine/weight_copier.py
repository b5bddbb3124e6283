"""Copies checkpoint tensors to the model's device.

A safetensors file is mapped, so reading a tensor fetches it from the disk. Copied directly, it would go through the
CUDA driver's small buffer, with a wait at every piece. Here pieces alternate between two pinned buffers: the disk
fetches the next piece while the last one crosses the bus. The host never holds more than these two.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

PIECE_BYTES = 32 << 20


class WeightCopier:
    """Copies tensors to `device`; the copies are complete after `finish`."""

    def __init__(self, device: torch.device, piece_bytes: int = PIECE_BYTES) -> None:
        self._device = device
        self._buffers: list[torch.Tensor] = []
        self._read: list[torch.cuda.Event] = []
        self._turn = 0
        if device.type == "cuda":
            self._buffers = [torch.empty(piece_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._read = [torch.cuda.Event() for _ in range(2)]

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Start copying `source`, in host memory, to the contiguous `target` of equal shape; dtypes may differ.

        A row of a source that is not contiguous, as of some columns of a matrix, must fit into a buffer.
        """
        if not self._buffers:
            target.copy_(source)
            return
        for piece, place in pieces(source, target, self._buffers[0].numel()):
            self._send(piece, place)

    def _send(self, piece: torch.Tensor, target: torch.Tensor) -> None:
        self._turn = 1 - self._turn
        event = self._read[self._turn]
        event.synchronize()  # Until the buffer has been copied; returns at once if it is unused.
        buffer = self._buffers[self._turn][: piece.numel() * piece.element_size()].view(piece.dtype).view(piece.shape)
        buffer.copy_(piece)
        if piece.dtype == target.dtype:
            target.copy_(buffer, non_blocking=True)
        else:
            target.copy_(buffer.to(self._device, non_blocking=True))  # Cast on the device.
        event.record(torch.cuda.current_stream(self._device))

    def finish(self) -> None:
        """Wait until all copies have ended."""
        for event in self._read:
            event.synchronize()


def pieces(source: torch.Tensor, target: torch.Tensor, piece_bytes: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cut two tensors of equal shape alike, into pieces of at most `piece_bytes` of the source, but whole rows.

    The values of a contiguous source count as rows; the target is contiguous.
    """
    if source.is_contiguous():
        source, target = source.view(-1), target.view(-1)
    step = max(1, piece_bytes // max(1, source[:1].nbytes))
    yield from zip(source.split(step), target.split(step), strict=True)
