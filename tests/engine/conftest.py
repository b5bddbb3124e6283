"""The real FlashInfer without a GPU: its Python runs, its kernels compute nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.engine.rank_group import RankGroup


@pytest.fixture(scope="session", params=[2, 4])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankGroup]:
    """Two, then four ranks, for many tests."""
    group = RankGroup(request.param, tmp_path_factory.mktemp("ranks"))
    yield group
    group.close()


_CACHED = {
    "prefill": "get_batch_prefill_module",
    "decode": "get_batch_decode_module",
    "page": "get_page_module",
    "rope": "get_rope_module",
    "norm": "get_norm_module",
    "activation": "get_act_and_mul_module",
}


@dataclass
class WithoutGpu:
    """The library, the modules loaded so far, and the arguments of every plan."""

    library: ModuleType
    loaded: list[str] = field(default_factory=list)
    plans: list[tuple[Any, ...]] = field(default_factory=list)


class _Kernels:
    """A loaded module."""

    def __init__(self, calls: WithoutGpu) -> None:
        self._calls = calls

    def plan(self, *arguments: Any) -> list[int]:
        self._calls.plans.append(arguments)
        return []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: []


@pytest.fixture
def flashinfer_without_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WithoutGpu]:
    """FlashInfer for an absent Hopper GPU; writes nothing outside the test's folder."""
    library = pytest.importorskip("flashinfer", reason="FlashInfer is not installed: pip install '.[cuda]'")
    calls = WithoutGpu(library)

    def load(spec: Any) -> _Kernels:
        calls.loaded.append(spec.name)
        return _Kernels(calls)

    for folder in ("JIT_DIR", "GEN_SRC_DIR", "AOT_DIR"):
        monkeypatch.setattr(library.jit.env, f"FLASHINFER_{folder}", tmp_path / folder)
    monkeypatch.setattr(library.jit.core.current_compilation_context, "TARGET_CUDA_ARCHS", {(9, "0a")})
    monkeypatch.setattr(library.jit.core.JitSpec, "build_and_load", load)
    monkeypatch.setattr(torch, "empty", _unpinned(torch.empty))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    _forget_modules(library)
    yield calls
    _forget_modules(library)


def _unpinned(empty: Any) -> Any:
    """Ordinary memory: without a GPU none can be pinned."""
    return lambda *arguments, pin_memory=False, **options: empty(*arguments, **options)


def _forget_modules(library: ModuleType) -> None:
    for part, loader in _CACHED.items():
        getattr(getattr(library, part), loader).cache_clear()
