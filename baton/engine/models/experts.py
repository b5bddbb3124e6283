"""A mixture of experts (Shazeer et al. 2017): each token goes through the MLPs that a router chooses for it.

The tokens' rows are sorted by expert, so that each expert multiplies its rows at once. A token's outputs are then put
side by side and added in the order of its choice: its sum does not depend on the tokens beside it.

Under tensor parallelism a rank has its columns of every expert, and the whole router: all ranks choose alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from baton.engine.experts_config import Experts
from baton.engine.models.layers import linear, silu_and_mul

_ALIGNMENT_BYTES = 16  # Of the rows of grouped products.
_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WITHOUT_WAIT = (9, 0)  # The compute capability from which a GPU multiplies groups of bfloat16 without the host.


class ExpertsMlp:
    """The experts of one layer with their router, and the shared expert where there is one."""

    down = down_bias = None  # The products with each expert's are in the sum.

    def __init__(self, config: Experts, parameters: Mapping[str, torch.Tensor]) -> None:
        """`parameters` are the layer's by name, `config` the rank's."""
        inner, router = config.intermediate_size, parameters["router"]
        self._config, self._router = config, router
        self._gate_up = parameters["experts_gate_up"].view(config.count, 2 * inner, -1)
        self._down = parameters["experts_down"].view(config.count, -1, inner)
        self._shared = [
            parameters[f"shared_{name}"] for name in ("gate", "gate_up", "down") if config.shared_intermediate_size
        ]
        self._experts = torch.arange(config.count, device=router.device)

    @property
    def matrices(self) -> list[torch.Tensor]:
        return [self._router, self._gate_up, self._down, *self._shared]

    @property
    def recordable(self) -> bool:
        return _grouped_without_wait(self._gate_up) and _grouped_without_wait(self._down)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's part of the sum over the experts of each token, `[tokens, hidden]` as x."""
        weights, chosen = self.choice(x)
        total = self.chosen_sum(x, weights, chosen)
        if self._shared:
            gate, gate_up, down = self._shared
            total += torch.sigmoid(F.linear(x, gate)) * linear(silu_and_mul(linear(x, gate_up)), down)
        return total

    def choice(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and numbers of each token's experts, `[tokens, per_token]`, the likeliest first."""
        logits = linear(x, self._router)
        likely = F.softmax(logits, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
        weights, chosen = likely.topk(self._config.per_token, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True) if self._config.normalised else weights, chosen

    def chosen_sum(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The weighted sum over the chosen experts of each token."""
        per_token = self._config.per_token
        sorted_experts, order = chosen.flatten().sort(stable=True)
        ends = torch.searchsorted(sorted_experts, self._experts, right=True, out_int32=True)
        gated = silu_and_mul(grouped_linear(x[order // per_token], self._gate_up, ends))
        gated.mul_(weights.flatten()[order, None])
        outputs = grouped_linear(gated, self._down, ends)
        by_token = torch.empty_like(outputs).index_copy_(0, order, outputs)
        return by_token.view(-1, per_token, x.shape[1]).sum(dim=1)


def grouped_linear(x: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Each group of rows of x times its matrix transposed: `[rows, n]`, `[groups, m, n]` give `[rows, m]`.

    Group i ends before row `ends[i]`, int32; the last group ends with the last row.
    """
    if _grouped(weights) and x.stride(0) * x.element_size() % _ALIGNMENT_BYTES == 0:
        return F.grouped_mm(x, weights.transpose(1, 2), offs=ends)
    products, start = x.new_empty(x.shape[0], weights.shape[1]), 0
    for matrix, end in zip(weights, ends.tolist(), strict=True):
        if end > start:
            torch.mm(x[start:end], matrix.t(), out=products[start:end])
        start = end
    return products


def _grouped(weights: torch.Tensor) -> bool:
    """Whether torch has a grouped product for these matrices."""
    return weights.dtype in _GROUPED_DTYPES and weights.stride(1) * weights.element_size() % _ALIGNMENT_BYTES == 0


def _grouped_without_wait(weights: torch.Tensor) -> bool:
    """Whether a grouped product never waits for the device: elsewhere torch fetches the groups' ends to the host."""
    if not weights.is_cuda:
        return True
    hopper = torch.cuda.get_device_capability(weights.device) >= _WITHOUT_WAIT
    return hopper and weights.dtype is torch.bfloat16 and _grouped(weights)
