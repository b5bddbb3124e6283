"""FlashInfer calls match the library: the reference they are tested with has the same signatures."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baton.engine.attention.flashinfer import VERSION, FlashInferAttention
from baton.engine.attention.plan_metadata import PlanMetadata, plan_metadata
from tests.engine import flashinfer_reference as reference
from tests.engine.batches import Ragged, filled_pages
from tests.engine.conftest import WithoutGpu

CALLS = [
    "append_paged_kv_cache",
    "fast_decode_plan",
    "rmsnorm",
    "fused_add_rmsnorm",
    "silu_and_mul",
    "apply_rope_with_cos_sin_cache_inplace",
    "BatchDecodeWithPagedKVCacheWrapper.__init__",
    "BatchDecodeWithPagedKVCacheWrapper.reset_workspace_buffer",
    "BatchDecodeWithPagedKVCacheWrapper.plan",
    "BatchDecodeWithPagedKVCacheWrapper.run",
    "BatchPrefillWithPagedKVCacheWrapper.__init__",
    "BatchPrefillWithPagedKVCacheWrapper.plan",
    "BatchPrefillWithPagedKVCacheWrapper.run",
]


def _find(module: Any, name: str) -> Callable[..., Any]:
    for part in name.split("."):
        module = getattr(module, part)
    return module  # type: ignore[no-any-return]


def test_the_version_that_is_installed_with_baton_is_the_one_that_calls_were_written_for() -> None:
    pyproject = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
    assert pyproject["project"]["optional-dependencies"]["cuda"][-1] == f"flashinfer-python=={VERSION}"
    assert reference.__version__ == VERSION


@pytest.mark.parametrize("name", CALLS)
def test_the_reference_has_the_signatures_of_the_library(name: str) -> None:
    flashinfer = pytest.importorskip("flashinfer", reason="FlashInfer is not installed: pip install '.[cuda]'")
    real = inspect.signature(_find(flashinfer, name)).parameters
    ours = inspect.signature(_find(reference, name)).parameters
    positional = [parameter.name for parameter in ours.values() if parameter.kind is not parameter.KEYWORD_ONLY]
    assert positional == list(real)[: len(positional)]
    assert set(ours) <= set(real)
    open_kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    closed = [parameter for parameter in real.values() if parameter.kind not in open_kinds]
    needed = {parameter.name for parameter in closed if parameter.default is parameter.empty}
    assert needed <= set(ours)


@pytest.mark.parametrize("heads", [(4, 4), (8, 2)], ids=["a head each", "four share keys"])
def test_steps_after_the_first_are_planned_from_the_host_and_read_the_devices_arrays(
    flashinfer_without_gpu: WithoutGpu, heads: tuple[int, int]
) -> None:
    """The second plan is FlashInfer's faster one: it plans with the same values and copies no array."""
    num_heads, kv_heads = heads
    batch = Ragged((5, 1, 17), ((0, 6), (9, 3)), 4, 1)
    attention = FlashInferAttention(filled_pages(batch, 1, kv_heads, 64, torch.bfloat16), num_heads)
    host, device = (PlanMetadata.of([array.clone() for array in plan_metadata(batch.layout()).tensors]) for _ in "hd")
    attention.plan_staged(batch.layout(), host, device)
    attention.plan_staged(batch.layout(), host, device)
    first, _, second, _ = flashinfer_without_gpu.plans
    assert len(first) == len(second)
    for argument, other in zip(first, second, strict=True):
        if not isinstance(argument, torch.Tensor):
            assert argument == other
        elif argument.dtype == torch.int32:
            assert torch.equal(argument, other)
    wrapper = attention._decode
    for buffer, whole in (
        (wrapper._paged_kv_indptr_buf, device.indptr),
        (wrapper._paged_kv_indices_buf, device.indices),
        (wrapper._paged_kv_last_page_len_buf, device.last_page_len),
    ):
        assert buffer.data_ptr() == whole.data_ptr()
    assert [len(wrapper._paged_kv_indptr_buf), len(wrapper._paged_kv_last_page_len_buf)] == [4, 3]


def test_tensor_core_kernels_are_requested_as_fa2_by_name(flashinfer_without_gpu: WithoutGpu) -> None:
    """Otherwise "auto" of a newer library could choose kernels that were not compiled."""
    batch = Ragged((5,), (), 4, 1)
    attention = FlashInferAttention(filled_pages(batch, 1, 2, 64, torch.bfloat16), 8)
    assert (attention._decode._backend, attention._prefill._backend) == ("fa2", "fa2")
