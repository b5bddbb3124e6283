"""The operations of a decoder. Each is a small function, so that a fused kernel can replace it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from baton.engine.ranks import Ranks


def fused(x: torch.Tensor) -> bool:
    """Whether FlashInfer has kernels for a tensor: on a GPU, with 16-bit elements."""
    return x.is_cuda and x.dtype is not torch.float32


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm over the last dimension, computed in at least float32. x is `[..., n]`, weight `[n]`."""
    if fused(x):
        from baton.engine.models import cuda_layers

        return cuda_layers.rms_norm(x, weight, eps)
    if x.dtype in (torch.float32, torch.float64):
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    scaled = F.rms_norm(x.float(), (x.shape[-1],), None, eps)
    return scaled.to(x.dtype) * weight


FEW_ROWS = 64  # Up to this many rows, `linear` on the CPU puts a wide matrix on the left.


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x·weightᵀ + bias for x `[tokens, n]`; the result is contiguous.

    With few rows and a wide matrix, as in decode, a CPU is up to 1.7 times as fast with the matrix on the left
    (measured with MKL on AVX2).
    """
    if x.shape[0] > FEW_ROWS or weight.shape[0] <= weight.shape[1] or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    product = torch.mm(weight, x.t()).t().contiguous()
    return product if bias is None else product.add_(bias)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up of `[tokens, 2·n]`; returns `[tokens, n]`, on the CPU in the memory of gate."""
    if fused(gate_up) and gate_up.shape[-1] % 16 == 0:  # The kernel reads 16 bytes of each half at a time.
        from baton.engine.models import cuda_layers

        return cuda_layers.silu_and_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate, inplace=True).mul_(up)


def summed_linear(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, ranks: Ranks
) -> torch.Tensor:
    """The ranks' sum of x·weightᵀ (None: of x), to which the bias is added once; x is `[tokens, n]`."""
    if ranks.num_ranks == 1 and weight is not None:
        return linear(x, weight, bias)
    product = ranks.all_reduce(x if weight is None else linear(x, weight))
    return product if bias is None else product.add_(bias)


def add_linear(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    ranks: Ranks,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """residual + scale · (the ranks' sum of x·weightᵀ + bias), in the memory of the residual `[tokens, n]`."""
    if ranks.num_ranks == 1 and weight is not None and bias is None:
        return residual.addmm_(x, weight.t(), alpha=scale)
    return residual.add_(summed_linear(x, weight, bias, ranks), alpha=scale)


def add_linear_norm(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    norm: torch.Tensor,
    eps: float,
    ranks: Ranks,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """`add_linear`, in place; returns the norm of the result."""
    if fused(residual) and scale == 1.0:
        from baton.engine.models import cuda_layers

        return cuda_layers.add_rms_norm(residual, summed_linear(x, weight, bias, ranks), norm, eps)
    return rms_norm(add_linear(residual, x, weight, ranks, bias, scale), norm, eps)


def norm_all_heads(
    q: torch.Tensor, k: torch.Tensor, q_norm: torch.Tensor, k_norm: torch.Tensor, eps: float, ranks: Ranks
) -> tuple[torch.Tensor, torch.Tensor]:
    """Root mean square norms of queries and keys `[tokens, heads, d]`, each over the heads of all ranks.

    `q_norm` and `k_norm` are `[heads · d]`, of this rank's heads. A KV head that several ranks keep counts as often.
    """
    parts = ((q.flatten(1), q_norm), (k.flatten(1), k_norm))
    if ranks.num_ranks == 1:
        normed = [rms_norm(x, weight, eps) for x, weight in parts]
    else:
        wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x, _ in parts]
        squares = torch.stack([x.square().mean(-1) for x in wide], dim=-1)
        factors = torch.rsqrt(ranks.all_reduce(squares) / ranks.num_ranks + eps)
        normed = [
            (x * factors[:, side, None]).to(q.dtype) * weight
            for side, (x, (_, weight)) in enumerate(zip(wide, parts, strict=True))
        ]
    return normed[0].view(q.shape), normed[1].view(k.shape)
