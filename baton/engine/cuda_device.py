"""Checks of a machine before a worker computes on one of its GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from baton.engine.attention.flashinfer import load_flashinfer
from baton.engine.kernel_compiler import let_flashinfer_compile
from baton.protocol.errors import ConfigError

_ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def check_allocator(environment: Mapping[str, str]) -> None:
    """Raise `ConfigError` if the environment makes torch allocate pages otherwise than with cudaMalloc.

    Expandable segments are mapped piece by piece. Such memory cannot be shared with another process by CUDA IPC, nor
    registered for RDMA as a whole.
    """
    for name in _ALLOCATOR_VARIABLES:
        options = [option.replace(" ", "").lower() for option in environment.get(name, "").split(",")]
        if "expandable_segments:true" in options:
            raise ConfigError(
                f"{name} turns expandable_segments on, but KV pages must be plain cudaMalloc memory to be sent to "
                "other workers: leave expandable_segments out."
            )


def check_pages(pages: torch.Tensor) -> None:
    """Raise `ConfigError` if torch did not allocate these pages with cudaMalloc, whatever the environment says."""
    backend = torch.cuda.get_allocator_backend()
    check_segments(backend, torch.cuda.memory_snapshot() if backend == "native" else [], pages.data_ptr())


def check_segments(backend: str, segments: Sequence[Mapping[str, Any]], address: int) -> None:
    """The pure part of `check_pages`.

    `backend` is the name of torch's allocator, `segments` its memory (`torch.cuda.memory_snapshot`), `address` that of
    the pages.
    """
    how = "" if backend == "native" else f"by {backend}"
    for segment in segments:
        if segment["address"] <= address < segment["address"] + segment["total_size"] and segment.get("is_expandable"):
            how = "as an expandable segment"
    if how:
        raise ConfigError(
            f"torch allocated the KV pages {how}, but they must be plain cudaMalloc memory to be sent elsewhere: "
            f"unset {' and '.join(_ALLOCATOR_VARIABLES)}."
        )


def check_kernels(kernels: str, capability: tuple[int, int]) -> None:
    """Raise `ConfigError` when a GPU of this compute capability has no such prefill kernels."""
    if kernels == "fa3" and capability[0] != 9:
        raise ConfigError(
            f'engine.attention is "fa3", which only Hopper GPUs (compute capability 9) have; this one is '
            f'{capability[0]}.{capability[1]}: use "fa2".'
        )


def open_device(name: str) -> torch.device:
    """The GPU of this name, such as "cuda:0", selected for this thread.

    Raises `ConfigError` with the reason when it cannot serve.
    """
    device = torch.device(name)
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{name} was requested, but torch {torch.__version__} finds no GPU here: check nvidia-smi, "
            "CUDA_VISIBLE_DEVICES, and that torch was built for CUDA."
        )
    count = torch.cuda.device_count()
    index = device.index or 0
    if index >= count:
        raise ConfigError(f"{name} was requested, but this process sees {count} GPUs, cuda:0 to cuda:{count - 1}.")
    check_allocator(os.environ)
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    let_flashinfer_compile(torch.cuda.get_device_capability(device))
    load_flashinfer()
    return device
