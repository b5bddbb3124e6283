"""The kernels that this engine asks of FlashInfer, as FlashInfer's modules: one library each, named by its contents.

Whatever compiles kernels, packs them or looks for them takes the list from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch

from baton.engine.attention.flashinfer import DECODE_KERNELS, KERNEL_DTYPES, TENSOR_CORE_GROUP, has_kernels

_NAMES = {torch.float16: "f16", torch.bfloat16: "bf16", torch.int32: "i32"}
# No rotation inside attention, no sliding window, no soft cap of logits.
_VARIANT = (0, False, False)
_VARIANT_NAME = "posenc_0_use_swa_False_use_logits_cap_False"


@dataclass(frozen=True, slots=True)
class KernelModule:
    """A module of FlashInfer's kernels.

    `name` is the name of its folder and library; `generator`, called with `arguments`, is the function of FlashInfer
    that describes the module.
    """

    name: str
    generator: str
    arguments: tuple[Any, ...] = ()

    def describe(self, library: Any) -> Any:
        """FlashInfer's `JitSpec`: the path of the module's library, and how it is compiled and loaded."""
        return reduce(getattr, self.generator.split("."), library)(*self.arguments)


def kernel_modules(
    dtype: torch.dtype, head_dim: int, group: int, prefill: Sequence[str] = (DECODE_KERNELS,)
) -> list[KernelModule]:
    """The modules for a model with heads of `head_dim` elements and `group` query heads per KV head, in `dtype`.

    `prefill` names the prefill kernels, "fa2" or "fa3". For float32, which torch computes, the list is empty.
    """
    if dtype not in KERNEL_DTYPES:
        return []
    modules = [
        KernelModule("norm", "jit.norm.gen_norm_module"),
        KernelModule("silu_and_mul", "jit.activation.gen_act_and_mul_module", ("silu",)),
    ]
    if not has_kernels(dtype, head_dim):
        return modules
    modules += [KernelModule("rope", "jit.rope.gen_rope_module"), KernelModule("page", "jit.page.gen_page_module")]
    on_tensor_cores = group >= TENSOR_CORE_GROUP
    kinds = dict.fromkeys([*prefill, DECODE_KERNELS] if on_tensor_cores else prefill)
    modules += [_prefill(kernels, dtype, head_dim) for kernels in kinds]
    return modules if on_tensor_cores else [*modules, _decode(dtype, head_dim)]


def _types(dtype: torch.dtype, head_dim: int) -> tuple[tuple[Any, ...], str]:
    """Element types of queries, KV, output and page ids, and head dimensions: (arguments, part of the name)."""
    name = _NAMES[dtype]
    words = f"dtype_q_{name}_dtype_kv_{name}_dtype_o_{name}_dtype_idx_{_NAMES[torch.int32]}"
    arguments = (dtype, dtype, dtype, torch.int32, head_dim, head_dim, *_VARIANT)
    return arguments, f"{words}_head_dim_qk_{head_dim}_head_dim_vo_{head_dim}_{_VARIANT_NAME}"


def _prefill(kernels: str, dtype: torch.dtype, head_dim: int) -> KernelModule:
    arguments, words = _types(dtype, head_dim)
    name = f"batch_prefill_with_kv_cache_{words}_f16qk_False{'_sm90' if kernels == 'fa3' else ''}"
    return KernelModule(name, "jit.attention.modules.gen_batch_prefill_module", (kernels, *arguments, False))


def _decode(dtype: torch.dtype, head_dim: int) -> KernelModule:
    arguments, words = _types(dtype, head_dim)
    return KernelModule(
        f"batch_decode_with_kv_cache_{words}", "jit.attention.modules.gen_batch_decode_module", arguments
    )
