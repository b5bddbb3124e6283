"""Rotary position embedding (Su et al. 2021): a model's table of angles, and the rotation of queries and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from baton.engine.models.layers import fused
from baton.engine.rope_config import FactorPerFrequency, LinearScaling, Llama3Scaling, Rope, Scaling, YarnScaling

FUSED_HEAD_DIMS = (64, 128, 256)


def angles(rope: Rope) -> torch.Tensor:
    """The angles of every position, `[context, rotary_dim / 2]` float32."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.int64).float() / rope.rotary_dim
    frequencies = _frequencies(rope.theta**exponents, rope.scaling)
    return torch.outer(torch.arange(rope.context_tokens).float(), frequencies)


def _frequencies(periods: torch.Tensor, scaling: Scaling | None) -> torch.Tensor:
    """The frequencies, of which `periods` are the reciprocals before they are scaled."""
    match scaling:
        case LinearScaling(factor):
            return 1.0 / periods / factor
        case FactorPerFrequency(factors):
            return 1.0 / (torch.tensor(factors) * periods)
        case Llama3Scaling():
            return _llama3(1.0 / periods, scaling)
        case YarnScaling(factor, low, high):
            pairs = torch.arange(len(periods), dtype=torch.float32)
            stretched = ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)
            return 1.0 / (factor * periods) * stretched + 1.0 / periods * (1 - stretched)
        case None:
            return 1.0 / periods


def _llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """As `apply_scaling` in https://github.com/meta-llama/llama-models."""
    wavelengths = 2 * math.pi / frequencies
    high = scaling.original_context_tokens / scaling.high_freq_factor
    low = scaling.original_context_tokens / scaling.low_freq_factor
    blend = (scaling.original_context_tokens / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    middle = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    stretched = torch.where(wavelengths > low, frequencies / scaling.factor, frequencies)
    return torch.where((wavelengths >= high) & (wavelengths <= low), middle, stretched)


class RopeTable:
    """cos and sin of every position's angles, on the device of `like`; in its element type unless fused (float32)."""

    def __init__(self, rope: Rope, head_dim: int, like: torch.Tensor) -> None:
        half = angles(rope)
        cos, sin = (turned * rope.magnitude for turned in (half.cos(), half.sin()))
        self._fused = fused(like) and head_dim in FUSED_HEAD_DIMS and rope.rotary_dim == head_dim
        if self._fused:
            self._table = torch.cat((cos, sin), dim=-1).to(like.device)  # The kernel requires float32.
        else:
            self._cos, self._sin = (
                torch.cat((turned, turned), dim=-1).unsqueeze(1).to(like.device).to(like.dtype) for turned in (cos, sin)
            )

    def at(self, positions: torch.Tensor) -> Rotation | FusedRotation:
        """The rotation of rows at these positions `[tokens]`."""
        if self._fused:
            return FusedRotation(positions, self._table)
        return Rotation(self._cos[positions], self._sin[positions])


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotates `[tokens, heads, head_dim]`; cos and sin are `[tokens, 1, rotary_dim]`."""

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


@dataclass(frozen=True, slots=True)
class NoRotation:
    """As `Rotation`, for a layer that does not rotate."""

    def together(self, qk: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        return qk[:, :num_heads], qk[:, num_heads:]

    def apart(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return q, k


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first values of `[tokens, heads, head_dim]` by position; cos and sin are `[tokens, 1, rotary_dim]`."""
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    half = turned.shape[-1] // 2
    rotated = turned * cos + torch.cat((-turned[..., half:], turned[..., :half]), dim=-1) * sin
    return torch.cat((rotated, kept), dim=-1) if kept.shape[-1] else rotated
