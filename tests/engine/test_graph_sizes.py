"""Batch sizes of recorded decode steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.engine.graph_sizes import STEP, graph_sizes, padded_size
from baton.protocol.errors import ConfigError


@given(max_batch=st.integers(1, 2000), count=st.integers(1, 2000))
def test_every_batch_up_to_the_largest_has_a_size_that_wastes_little(max_batch: int, count: int) -> None:
    sizes = graph_sizes(max_batch)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == max_batch
    size = padded_size(count, sizes)
    if count > max_batch:
        assert size is None
        return
    assert size is not None
    assert count <= size <= max_batch
    assert size - count < (STEP if count <= 256 else 64)


def test_the_sizes_are_few() -> None:
    assert graph_sizes(1) == (1,)
    assert graph_sizes(20) == (1, 2, 4, 8, 16, 20)
    assert len(graph_sizes(256)) == 35


def test_an_empty_batch_has_no_graph_size() -> None:
    assert padded_size(0, (1, 2)) is None
    with pytest.raises(ConfigError, match="at least 1"):
        graph_sizes(0)
