"""Rotary position embedding (Su et al. 2021): a model's table of angles, and the rotation of queries and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from baton.engine.model_config import ModelConfig
from baton.engine.models.layers import fused

FUSED_HEAD_DIMS = (64, 128, 256)


def angles(config: ModelConfig) -> torch.Tensor:
    """The angles of every position, `[context, head_dim / 2]` float32.

    Llama 3's scaling follows `apply_scaling` in https://github.com/meta-llama/llama-models.
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
    return torch.outer(torch.arange(config.context_tokens).float(), frequencies)


class RopeTable:
    """cos and sin of every position's angles, on the device of `like`; in its element type unless fused (float32)."""

    def __init__(self, config: ModelConfig, like: torch.Tensor) -> None:
        half = angles(config)
        self._fused = fused(like) and config.head_dim in FUSED_HEAD_DIMS
        if self._fused:
            self._table = torch.cat((half.cos(), half.sin()), dim=-1).to(like.device)  # The kernel requires float32.
        else:
            both = torch.cat((half, half), dim=-1).unsqueeze(1)
            self._cos = both.cos().to(like.device).to(like.dtype)
            self._sin = both.sin().to(like.device).to(like.dtype)

    def at(self, positions: torch.Tensor) -> Rotation | FusedRotation:
        """The rotation of rows at these positions `[tokens]`."""
        if self._fused:
            return FusedRotation(positions, self._table)
        return Rotation(self._cos[positions], self._sin[positions])


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotates `[tokens, heads, head_dim]`; cos and sin are `[tokens, 1, head_dim]`."""

    cos: torch.Tensor
    sin: torch.Tensor

    def together(self, qk: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated (queries, keys) of one tensor, in which the first `num_heads` heads are the queries."""
        rotated = apply_rope(qk, self.cos, self.sin)
        return rotated[:, :num_heads], rotated[:, num_heads:]

    def apart(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated (queries, keys) of two tensors."""
        return apply_rope(q, self.cos, self.sin), apply_rope(k, self.cos, self.sin)


@dataclass(frozen=True, slots=True)
class FusedRotation:
    """As `Rotation`, with one kernel and in place; `table` is `[context, head_dim]` float32, cosines before sines."""

    positions: torch.Tensor
    table: torch.Tensor

    def together(self, qk: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.apart(qk[:, :num_heads], qk[:, num_heads:])

    def apart(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from baton.engine.models import cuda_layers

        cuda_layers.rotate(q, k, self.positions, self.table)
        return q, k


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `[tokens, heads, head_dim]` by each token's position; cos and sin are `[tokens, 1, head_dim]`."""
    half = x.shape[-1] // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + rotated * sin
