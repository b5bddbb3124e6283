"""Host memory for preempted sequences: how much is pinned, and for how long."""

from __future__ import annotations

import gc

import pytest
import torch

from baton.engine.host_pages import HostPages, pin
from baton.protocol.errors import ConfigError


class Runtime:
    """A stand-in for torch's binding of the CUDA runtime that records pinned memory."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.pinned: dict[int, int] = {}

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802 - CUDA's name
        assert num_bytes > 0, "CUDA refuses to pin nothing"
        if not self.code:
            self.pinned[address] = num_bytes
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.pinned[address]
        return 0


class OnGpu(torch.Tensor):
    is_cuda = True


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    return runtime


PAGES = torch.zeros(4, 1, 2, 2, 16, 8)
PAGE_BYTES = PAGES[0].nbytes


def test_no_more_is_pinned_than_the_slots_take_and_it_is_given_back_with_them(runtime: Runtime) -> None:
    host = HostPages(PAGES.as_subclass(OnGpu), 9)
    assert list(runtime.pinned.values()) == [9 * PAGE_BYTES]
    assert list(runtime.pinned) == [host._slots.data_ptr()]
    del host
    gc.collect()
    assert not runtime.pinned


def test_nothing_is_pinned_without_slots_or_beside_pages_on_a_cpu(runtime: Runtime) -> None:
    hosts = [HostPages(PAGES.as_subclass(OnGpu), 0), HostPages(PAGES, 9)]
    assert not runtime.pinned
    del hosts


def test_memory_that_cannot_be_pinned_ends_the_start_with_an_error_message() -> None:
    with pytest.raises(
        ConfigError, match=r"0\.0 GiB of host memory .* \(CUDA error 2\): lower engine\.swap_memory_gib"
    ):
        pin(torch.zeros(4), Runtime(2))
