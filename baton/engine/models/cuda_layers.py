"""FlashInfer's fused kernels behind the functions of layers.py; imported only for tensors on a GPU.

The kernels' in-place conventions stay in this file (FlashInfer 0.6.6): `fused_add_rmsnorm` leaves the sum in `residual`
and the norm in `input`; the rotation takes strided slices of the projection and overwrites them.
"""

from __future__ import annotations

import flashinfer
import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm of x, `[tokens, n]` or `[tokens, heads, n]`, with a contiguous last dimension."""
    out = x.new_empty(x.shape)
    flashinfer.rmsnorm(x, weight, eps, out=out)
    return out


def add_rms_norm(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add x to the residual in place; returns the norm of the sum, in the memory of x. Both are `[tokens, n]`."""
    flashinfer.fused_add_rmsnorm(x, residual, weight, eps)
    return x


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up of `[tokens, 2·n]`, contiguous, n a multiple of 8; returns `[tokens, n]`."""
    out: torch.Tensor = flashinfer.silu_and_mul(gate_up)
    return out


def rotate(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> None:
    """Rotate q and k in place, both halves of a head against each other as in Llama.

    q and k are `[tokens, heads, head_dim]`, positions `[tokens]` int32 or int64, `table` is that of `FusedRotation`.
    """
    flashinfer.apply_rope_with_cos_sin_cache_inplace(positions, q, k, q.shape[-1], table, is_neox=True)
