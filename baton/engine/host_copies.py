"""Copies between host and device memory that are only queued, so that no call waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def beside(there: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of host memory on the device of `there`."""
    return tensor.pin_memory().to(there.device, non_blocking=True) if there.is_cuda else tensor


def like(there: torch.Tensor, values: Sequence[Any], dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of these values on the device of `there`."""
    return beside(there, torch.tensor(values, dtype=dtype))


def fetch(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in host memory; it is valid once the device has completed the copy."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
