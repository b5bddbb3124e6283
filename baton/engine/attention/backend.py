"""The interface of paged attention, and a step's batch in FlashInfer's terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """A step's ragged batch of n sequences, the first `num_decodes` with one token. All tensors are int32 on the CPU.

    | field         | shape     | meaning                                                          |
    | ------------- | --------- | ---------------------------------------------------------------- |
    | qo_indptr     | [n + 1]   | sequence i's tokens are rows qo_indptr[i]:qo_indptr[i+1]         |
    | indptr        | [n + 1]   | its pages are indices[indptr[i]:indptr[i+1]]                     |
    | indices       | [pages]   | page ids                                                         |
    | last_page_len | [n]       | positions used in its last page, after this step                 |
    | positions     | [tokens]  | each row's position in its sequence                              |
    """

    qo_indptr: torch.Tensor
    indptr: torch.Tensor
    indices: torch.Tensor
    last_page_len: torch.Tensor
    positions: torch.Tensor
    num_decodes: int


class LayerAttention(Protocol):
    """Causal attention over KV pages for a planned step, called once per layer in order."""

    def run(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Write k and v `[tokens, kv_heads, head_dim]` into the layer's pages, then attend.

        q and the result are `[tokens, heads, head_dim]`; the scale is 1/sqrt(head_dim). Query head h reads
        key/value head h // (heads // kv_heads).
        """
        ...


class AttentionBackend(LayerAttention, Protocol):
    """`plan` once per step, then `run` once per layer."""

    def plan(self, layout: BatchLayout) -> None:
        """Prepare the data that all layers of the step share."""
        ...
