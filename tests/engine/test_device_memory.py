"""The number of pages that fit on a GPU, from measured figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.engine.device_memory import GIB, DeviceMemory, pages_that_fit
from baton.protocol.errors import ConfigError

PAGE = 2 << 20
ROOM = DeviceMemory(total=80 * GIB, free=60 * GIB, own=16 * GIB, step_peak=2 * GIB, workspace=GIB)


def test_pages_take_what_the_fraction_leaves_beside_weights_and_steps() -> None:
    assert pages_that_fit(ROOM, 0.9, PAGE, 100) == (72 - 16 - 2 - 1) * GIB // PAGE - 1
    assert pages_that_fit(ROOM, 0.45, PAGE, 100) == (36 - 16 - 2 - 1) * GIB // PAGE - 1


@given(
    own=st.integers(0, 30 * GIB),
    step_peak=st.integers(0, 5 * GIB),
    workspace=st.integers(0, 2 * GIB),
    page=st.integers(1 << 12, 1 << 24),
)
def test_two_workers_on_one_gpu_never_take_more_than_it_has(
    own: int, step_peak: int, workspace: int, page: int
) -> None:
    """The second worker sees less free memory, whether or not the first has allocated its pages."""
    total = 80 * GIB
    taken = 0
    for _ in range(2):
        memory = DeviceMemory(total, total - taken - own, own, step_peak, workspace)
        try:
            pages = pages_that_fit(memory, 0.45, page, 1)
        except ConfigError:
            return
        taken += own + step_peak + workspace + (pages + 1) * page
        assert own + step_peak + workspace + (pages + 1) * page <= 0.45 * total
    assert taken <= 0.9 * total


def test_too_little_memory_is_reported_with_its_users_and_a_remedy() -> None:
    with pytest.raises(ConfigError, match=r"it holds 16\.00, .* raise engine\.gpu_memory_fraction"):
        pages_that_fit(ROOM, 0.2, PAGE, 100)
    with pytest.raises(ConfigError, match="other processes use this GPU"):
        pages_that_fit(replace(ROOM, free=2 * GIB), 0.9, PAGE, 100)
    with pytest.raises(ConfigError, match="one full-length request needs 99999999"):
        pages_that_fit(ROOM, 0.9, PAGE, 99_999_999)
