"""Every kind of attention on a device, the preferred first: a model gets the first that supports its pages."""

from __future__ import annotations

from typing import Any

import torch

from baton.engine.attention import flashinfer, torch_cpu
from baton.engine.attention.device_backend import DeviceBackend

BACKENDS: dict[str, DeviceBackend[Any]] = {
    "flashinfer": flashinfer.BACKEND,
    "torch": torch_cpu.BACKEND,  # supports everything
}


def device_backend(dtype: torch.dtype, head_dim: int) -> DeviceBackend[Any]:
    """The attention that serves pages of such elements and heads."""
    return next(backend for backend in BACKENDS.values() if backend.supports(dtype, head_dim))
