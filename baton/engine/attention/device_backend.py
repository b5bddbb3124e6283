"""The interface of paged attention on a device: `AttentionBackend` with staged plans and recorded steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from baton.engine.attention.backend import AttentionBackend, BatchLayout, LayerAttention
from baton.engine.attention.plan_metadata import PlanMetadata
from baton.protocol.worker import PageLayout


class DeviceAttention(AttentionBackend, Protocol):
    """Attention on the device of the pages."""

    def plan_staged(self, layout: BatchLayout, host: PlanMetadata, device: PlanMetadata) -> None:
        """As `plan`, for metadata in pinned memory (`host`) of which the copy to `device` has been queued."""
        ...


class RecordedAttention(LayerAttention, Protocol):
    """Attention of one recorded decode step, which reads the device addresses that it was recorded with."""

    def plan_staged(self, host: PlanMetadata) -> None:
        """Plan a replay; the copy of `host` to these addresses has been queued before."""
        ...


Recording = Callable[[PlanMetadata], RecordedAttention]
Attention = TypeVar("Attention", bound=DeviceAttention)


@dataclass(frozen=True, slots=True)
class DeviceBackend(Generic[Attention]):
    """One kind of attention, as the table in device_backends.py lists it.

    | field           | meaning                                                                                       |
    | --------------- | --------------------------------------------------------------------------------------------- |
    | supports        | (dtype, head_dim): whether it computes attention over pages of these                          |
    | workspace_bytes | (device, max_batch, num_heads, layout): device memory that `open` takes beside the pages      |
    | open            | (pages, num_heads, kernels, max_batch): attention over pages                                  |
    |                 | `[num_pages, kv_heads, num_layers, 2, page_size, head_dim]`, contiguous; `kernels` names those |
    |                 | for prefill, "fa2" or "fa3"; at most `max_batch` sequences decode in a step                   |
    | record          | prepares to record decode steps of the attention that `open` returned; the result is called   |
    |                 | per batch size with that size's metadata on the device. None: steps cannot be recorded        |
    """

    supports: Callable[[torch.dtype, int], bool]
    workspace_bytes: Callable[[torch.device, int, int, PageLayout], int]
    open: Callable[[torch.Tensor, int, str, int], Attention]
    record: Callable[[Attention], Recording] | None
