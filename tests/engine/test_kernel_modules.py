"""The list of kernels matches FlashInfer: its module names, and the modules that the engine's calls load."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baton.engine.attention.flashinfer import FlashInferAttention
from baton.engine.attention.kernel_modules import kernel_modules
from tests.engine.batches import Ragged, filled_pages
from tests.engine.conftest import WithoutGpu
from tests.gpu.cases import CASES, modules

BF16, F16 = torch.bfloat16, torch.float16
MIXED = Ragged((5, 17), ((0, 6), (9, 3)), 4, 1)


def _names(*arguments: Any) -> list[str]:
    return [module.name for module in kernel_modules(*arguments)]


def test_a_llama_of_8_billion_needs_five_modules() -> None:
    assert _names(BF16, 128, 4) == [
        "norm",
        "silu_and_mul",
        "rope",
        "page",
        "batch_prefill_with_kv_cache_dtype_q_bf16_dtype_kv_bf16_dtype_o_bf16_dtype_idx_i32_head_dim_qk_128_head_dim_vo_128"
        "_posenc_0_use_swa_False_use_logits_cap_False_f16qk_False",
    ]


def test_decode_has_a_module_of_its_own_where_few_query_heads_share_keys() -> None:
    assert [name.split("_dtype")[0] for name in _names(F16, 64, 2)[4:]] == [
        "batch_prefill_with_kv_cache",
        "batch_decode_with_kv_cache",
    ]


def test_with_fa3_for_prefill_fa2_still_decodes_on_tensor_cores() -> None:
    assert [name.endswith("_sm90") for name in _names(BF16, 128, 8, ("fa3",))[4:]] == [True, False]
    assert [name.endswith("_sm90") for name in _names(BF16, 128, 1, ("fa3",))[4:]] == [True, False]
    assert len(_names(BF16, 128, 4, ("fa2", "fa3"))) == len(set(_names(BF16, 128, 4, ("fa2", "fa3")))) == 6


def test_attention_by_torch_needs_no_kernels() -> None:
    assert _names(torch.float32, 128, 4) == []
    assert _names(BF16, 32, 2) == ["norm", "silu_and_mul"]


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_the_module_names_are_those_of_flashinfer(
    flashinfer_without_gpu: WithoutGpu, dtype: torch.dtype, head_dim: int, group: int
) -> None:
    for module in kernel_modules(dtype, head_dim, group, ("fa2", "fa3")):
        assert module.describe(flashinfer_without_gpu.library).name == module.name


@pytest.mark.parametrize("kernels", ["fa2", "fa3"])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)], ids=["a head each", "four share keys"])
def test_the_engines_calls_load_the_modules_of_the_list_and_no_others(
    flashinfer_without_gpu: WithoutGpu, heads: tuple[int, int], kernels: str
) -> None:
    from baton.engine.models import cuda_layers

    num_heads, kv_heads = heads
    attention = FlashInferAttention(filled_pages(MIXED, 1, kv_heads, 64, BF16), num_heads, kernels)
    attention.plan(MIXED.layout())
    qkv = torch.zeros(len(MIXED.layout().positions), num_heads + 2 * kv_heads, 64, dtype=BF16)
    q, k, v = qkv.split((num_heads, kv_heads, kv_heads), dim=1)
    attention.run(0, q, k, v)
    rows = qkv.flatten(1)
    cuda_layers.rms_norm(rows, rows[0], 1e-5)
    cuda_layers.add_rms_norm(rows.clone(), rows, rows[0], 1e-5)
    cuda_layers.silu_and_mul(rows)
    cuda_layers.rotate(q, k, torch.zeros(len(rows), dtype=torch.int32), torch.zeros(32, 64))
    assert set(flashinfer_without_gpu.loaded) == {
        module.name for module in kernel_modules(BF16, 64, num_heads // kv_heads, (kernels,))
    }


def test_the_tests_on_a_gpu_take_four_modules_of_attention() -> None:
    """Compiling each takes some twenty seconds on a large machine."""
    attention = [module.name for module in modules() if module.name.startswith("batch")]
    assert len(attention) == len(set(attention)) <= 4
    assert {case.head_dim for case in CASES} == {64, 128}
