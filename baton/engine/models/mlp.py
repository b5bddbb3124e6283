"""The MLP of a layer, chosen once at load: a dense one, or experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from baton.engine.experts_config import Experts
from baton.engine.models.experts import ExpertsMlp
from baton.engine.models.layers import linear, silu_and_mul


class Mlp(Protocol):
    """Called with `[tokens, hidden]`, returns the rows that `down` multiplies (None: this rank's part of the sum)."""

    @property
    def down(self) -> torch.Tensor | None: ...

    @property
    def down_bias(self) -> torch.Tensor | None: ...

    @property
    def matrices(self) -> list[torch.Tensor]:
        """Its matrices, those of all experts included."""
        ...

    @property
    def recordable(self) -> bool:
        """Whether it computes without waiting for the device."""
        ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class DenseMlp:
    """down · (silu(gate · x) · (up · x)), each with a bias or without; the product with `down` is the caller's."""

    recordable = True

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """`parameters` are the layer's by name."""
        self._gate_up, self._gate_up_bias = parameters["gate_up"], parameters.get("gate_up_bias")
        self.down, self.down_bias = parameters["down"], parameters.get("down_bias")

    @property
    def matrices(self) -> list[torch.Tensor]:
        return [self._gate_up, self.down]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return silu_and_mul(linear(x, self._gate_up, self._gate_up_bias))


def mlp_of(parameters: Mapping[str, torch.Tensor], experts: Experts | None) -> Mlp:
    """The MLP of the layer with these parameters; `experts` is the rank's."""
    if experts is None or "router" not in parameters:
        return DenseMlp(parameters)
    return ExpertsMlp(experts, parameters)
