"""FlashInfer calls fit the library's signatures: the reference that they are run against has the same ones."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.attention.flashinfer import VERSION
from tests.engine import flashinfer_reference as reference

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
    assert pyproject["project"]["optional-dependencies"]["cuda"] == [f"flashinfer-python=={VERSION}"]
    assert reference.__version__ == VERSION


@pytest.mark.parametrize("name", CALLS)
def test_the_reference_takes_what_the_library_takes(name: str) -> None:
    flashinfer = pytest.importorskip("flashinfer", reason="FlashInfer is not installed: pip install 'baton[cuda]'")
    real = inspect.signature(_find(flashinfer, name)).parameters
    ours = inspect.signature(_find(reference, name)).parameters
    positional = [one.name for one in ours.values() if one.kind is not one.KEYWORD_ONLY]
    assert positional == list(real)[: len(positional)]
    assert set(ours) <= set(real)
    open_kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = {one.name for one in real.values() if one.default is one.empty and one.kind not in open_kinds}
    assert needed <= set(ours)
