"""FlashInfer's fused kernels behind the functions of layers.py; imported only where tensors lie on a GPU.

Their in-place conventions stay in here (read in FlashInfer 0.6.6): `fused_add_rmsnorm` leaves the sum in `residual` and
the norm in `input`, and the rotation takes strided slices of the projection and writes where it reads.
"""

from __future__ import annotations

import flashinfer
import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`[tokens, n]` or `[tokens, heads, n]`, the last dimension contiguous."""
    out = x.new_empty(x.shape)
    flashinfer.rmsnorm(x, weight, eps, out=out)
    return out


def add_rms_norm(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Adds x to the residual in its place; returns the norm of the sum, in the place of x. Both `[tokens, n]`."""
    flashinfer.fused_add_rmsnorm(x, residual, weight, eps)
    return x


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`[tokens, 2·n]` contiguous, n a multiple of 8: `[tokens, n]`."""
    out: torch.Tensor = flashinfer.silu_and_mul(gate_up)
    return out


def rotate(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> None:
    """In place, both halves of a head against each other as in Llama; positions `[tokens]` int32 or int64."""
    flashinfer.apply_rope_with_cos_sin_cache_inplace(positions, q, k, q.shape[-1], table, is_neox=True)
