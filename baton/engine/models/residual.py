"""How the output of an attention or an MLP joins the residual stream: with norms before the blocks, or behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from baton.engine.models.layers import add_linear, add_linear_norm, rms_norm, summed_linear
from baton.engine.ranks import Ranks


class Join(Protocol):
    """Adds a block's output to the residual."""

    def __call__(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add the last matrix's product with x `[tokens, n]` to the residual, in place; returns the next block's input.

        The residual is `[tokens, hidden]`. Without a last matrix, x is a rank's part of the output itself.
        """
        ...


@dataclass(frozen=True, slots=True)
class NormBefore:
    """Llama's: each block computes on a norm of the residual. `norm` is the next block's, None behind the last."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    norm: torch.Tensor | None
    eps: float
    scale: float
    ranks: Ranks

    def __call__(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self.norm is None:
            return add_linear(residual, x, self.weight, self.ranks, self.bias, self.scale)
        return add_linear_norm(residual, x, self.weight, self.norm, self.eps, self.ranks, self.bias, self.scale)


@dataclass(frozen=True, slots=True)
class NormAfter:
    """OLMo 2's: each block computes on the residual itself, and `norm` is of its output."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    norm: torch.Tensor
    eps: float
    scale: float
    ranks: Ranks

    def __call__(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        output = rms_norm(summed_linear(x, self.weight, self.bias, self.ranks), self.norm, self.eps)
        return residual.add_(output, alpha=self.scale)
