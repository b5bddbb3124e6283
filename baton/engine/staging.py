"""Copies all small arrays of a step to the device in one transfer: packed in pinned memory, read there as views."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ALIGN = 4  # In int32 values: every array begins at a multiple of 16 bytes.


class StagingBuffer:
    """int32 arrays in flight to `device`.

    `put` overwrites the arrays of the last call, so the caller first waits until the device has read them. An array's
    place depends only on the lengths of the arrays before it.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        """`capacity` is in int32 values."""
        self._device = device
        self.capacity = capacity
        self._host = torch.empty(capacity, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._values = self._host.numpy()  # The same memory: numpy writes a small array faster.
        self._there = self._host if device.type == "cpu" else torch.empty(capacity, dtype=torch.int32, device=device)

    def holds(self, arrays: Sequence[torch.Tensor]) -> bool:
        """Whether these arrays fit."""
        return _offsets(arrays)[-1] <= self.capacity

    def put(self, arrays: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(the arrays in pinned memory, the same on the device); the copy is queued on the current stream."""
        places = self.write(arrays)
        return self.on_host(places), [self._there[place] for place in places]

    def write(self, arrays: Sequence[torch.Tensor]) -> list[slice]:
        """As `put`, but returns only the arrays' places: making views of all would double the cost."""
        offsets = _offsets(arrays)
        places = []
        for start, array in zip(offsets, arrays, strict=False):
            places.append(slice(start, start + array.shape[0]))
            self._values[places[-1]] = array.numpy()
        if self._there is not self._host:
            self._there[: offsets[-1]].copy_(self._host[: offsets[-1]], non_blocking=True)
        return places

    def on_host(self, places: Sequence[slice]) -> list[torch.Tensor]:
        """The arrays of `write`, in pinned memory."""
        return [self._host[place] for place in places]

    def rest_from(self, array: torch.Tensor, length: int) -> torch.Tensor:
        """`length` values on the device from the beginning of `array`, which must be the last one of a `put`."""
        start = array.storage_offset()
        return self._there[start : start + length]


class GrowingStagingBuffer:
    """A `StagingBuffer` that takes arrays of any size."""

    def __init__(self, device: torch.device, capacity: int = 1 << 16) -> None:
        self._device = device
        self._buffer = StagingBuffer(device, capacity)

    def put(self, arrays: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        if not self._buffer.holds(arrays):
            self._buffer = StagingBuffer(self._device, 2 * _offsets(arrays)[-1])
        return self._buffer.put(arrays)


def _offsets(arrays: Sequence[torch.Tensor]) -> list[int]:
    """The beginning of each array, and the end of the last one, in int32 values."""
    offsets = [0]
    for array in arrays:
        offsets.append(offsets[-1] + -(-array.shape[0] // _ALIGN) * _ALIGN)
    return offsets
