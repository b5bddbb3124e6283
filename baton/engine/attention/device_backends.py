"""The table of attention backends on a device, in order of preference: the first that supports a model's pages wins."""

from __future__ import annotations

from typing import Any

import torch

from baton.engine.attention import flashinfer, torch_cpu
from baton.engine.attention.device_backend import DeviceBackend

BACKENDS: dict[str, DeviceBackend[Any]] = {
    "flashinfer": flashinfer.BACKEND,
    "torch": torch_cpu.BACKEND,  # Supports everything.
}


def device_backend(dtype: torch.dtype, head_dim: int) -> DeviceBackend[Any]:
    """The preferred backend for pages of this element type and head dimension."""
    return next(backend for backend in BACKENDS.values() if backend.supports(dtype, head_dim))
