"""The cases computed on a GPU and the kernels they need: few, because compiling takes most of the time.

One axis varies at a time: bfloat16 with heads of 128, then the other element type and other heads in one case each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baton.engine.attention.kernel_modules import KernelModule, kernel_modules
from tests.engine.batches import Ragged
from tests.engine.test_cuda_executor_on_cpu import RAW

BATCHES = {
    "decode": Ragged((5, 1, 17, 900), (), 16, 1),
    "prefill": Ragged((), ((0, 200), (33, 70), (500, 1)), 16, 2),
    "mixed": Ragged((64, 63, 65), ((0, 17), (129, 300)), 16, 3),
    "pages of one": Ragged((3, 40), ((7, 20),), 1, 4),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A batch and the attention over it: query heads, KV heads, head size and element type."""

    batch: str
    heads: tuple[int, int] = (8, 2)
    head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    def modules(self) -> list[KernelModule]:
        return kernel_modules(self.dtype, self.head_dim, self.heads[0] // self.heads[1])

    def __str__(self) -> str:
        return f"{self.batch} {self.heads[0]}:{self.heads[1]} {self.head_dim} {str(self.dtype).removeprefix('torch.')}"


CASES = [
    *(Case(batch, heads) for heads in ((8, 2), (8, 8)) for batch in BATCHES),
    *(Case("mixed", heads) for heads in ((16, 2), (7, 1))),
    Case("mixed", head_dim=64),
    Case("mixed", dtype=torch.float16),
]
# The shape of the executor tests' model, in both element types.
SMALL = {
    **RAW,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 512,
}


def modules() -> list[KernelModule]:
    """All kernels that the tests need, except fa3."""
    models = [kernel_modules(dtype, 128, 4) for dtype in (torch.bfloat16, torch.float16)]
    return list(dict.fromkeys(module for found in (*(case.modules() for case in CASES), *models) for module in found))
