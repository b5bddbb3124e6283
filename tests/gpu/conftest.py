"""Everything in here needs a GPU, and skips with a reason that says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch


def _why_not() -> str:
    if not torch.cuda.is_available():
        return f"needs a GPU, and torch {torch.__version__} finds none"
    if importlib.util.find_spec("flashinfer") is None:
        return "needs FlashInfer on this GPU machine: pip install 'baton[cuda]'"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _why_not()
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device() -> torch.device:
    from engine.cuda_device import open_device

    return open_device("cuda:0")
