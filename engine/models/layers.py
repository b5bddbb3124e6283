"""The few operations a decoder is made of. Each is one small function, so that a fused kernel can take its place."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from engine.model_config import ModelConfig


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm over the last dimension, computed in float32. Any shape `[..., n]`, weight `[n]`."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    scaled = F.rms_norm(x.float(), (x.shape[-1],), None, eps)
    return scaled.to(x.dtype) * weight


FEW_ROWS = 64


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x·weightᵀ + bias for x `[tokens, n]`, contiguous.

    A wide matrix times few rows, the shape of decode, runs up to 1.7 times as fast on the CPU with the matrix on the
    left (measured with MKL on AVX2).
    """
    if x.shape[0] > FEW_ROWS or weight.shape[0] <= weight.shape[1] or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    product = torch.mm(weight, x.t()).t()
    return product.contiguous() if bias is None else product + bias


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up of `[tokens, 2·n]`, giving `[tokens, n]` in the place of gate."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate, inplace=True).mul_(up)


def add_linear(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """residual + x·weightᵀ, in the place of the residual `[tokens, n]`."""
    return residual.addmm_(x, weight.t())


def rope_table(config: ModelConfig, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin for every position, each `[context, 1, head_dim]` float32 (both halves repeat, as in Llama).

    Llama 3's scaling: https://github.com/meta-llama/llama-models, `apply_scaling`.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is not None:
        wavelengths = 2 * math.pi / frequencies
        high = scaling.original_context_tokens / scaling.high_freq_factor
        low = scaling.original_context_tokens / scaling.low_freq_factor
        blend = (scaling.original_context_tokens / wavelengths - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        middle = (1 - blend) * frequencies / scaling.factor + blend * frequencies
        stretched = torch.where(wavelengths > low, frequencies / scaling.factor, frequencies)
        frequencies = torch.where((wavelengths >= high) & (wavelengths <= low), middle, stretched)
    angles = torch.outer(torch.arange(config.context_tokens).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return angles.cos().to(device), angles.sin().to(device)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `[tokens, heads, head_dim]` by each token's position; cos and sin are `[tokens, 1, head_dim]`."""
    half = x.shape[-1] // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + rotated * sin
