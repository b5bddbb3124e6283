"""Every test in this folder needs a GPU; without one it is skipped with the reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.gpu.cases import modules


def _why_not() -> str:
    if not torch.cuda.is_available():
        return f"needs a GPU, and torch {torch.__version__} finds none"
    if importlib.util.find_spec("flashinfer") is None:
        return "needs FlashInfer on this GPU machine: pip install '.[cuda]'"
    return ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reason, fa3 = _why_not(), "fa3" in config.getoption("-m")
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif item.get_closest_marker("fa3") and not fa3:
            item.add_marker(pytest.mark.skip(reason="fa3 compiles for minutes: pytest tests/gpu -m fa3"))


@pytest.fixture(scope="session")
def opened() -> torch.device:
    """The GPU, with all kernels of these tests compiled side by side."""
    from baton.engine.cuda_device import open_device
    from baton.engine.kernel_loading import load_kernels

    device = open_device("cuda:0")
    load_kernels(modules(), torch.cuda.get_device_capability(device), print)
    return device


@pytest.fixture
def device(opened: torch.device) -> torch.device:
    return opened
