"""Small pure parts: the handoff's table, latency, hashes, errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.protocol import errors
from baton.protocol.errors import BatonError, InternalError, error_from_name
from baton.protocol.handoff import HandoffState, HandoffStep, advance
from baton.protocol.latency import Latency, percentile
from baton.protocol.prefix_hash import page_hashes, root_hash

ROOT = root_hash("m")


def test_a_handoff_ends_in_committed_or_aborted_from_everywhere() -> None:
    ends = {HandoffState.COMMITTED, HandoffState.ABORTED}
    for state in HandoffState:
        reached, todo = {state}, [state]
        while todo:
            here = todo.pop()
            for step in HandoffStep:
                try:
                    after = advance(here, step)
                except InternalError:
                    continue
                todo += [after] * (after not in reached)
                reached.add(after)
        assert reached & ends
    for state in ends:
        for step in HandoffStep:
            with pytest.raises(InternalError):
                advance(state, step)


def test_latency_is_undefined_until_it_happened() -> None:
    latency = Latency(arrival_s=10.0)
    assert latency.ttft_s is None
    latency.on_tokens(1, 10.5)
    assert (latency.ttft_s, latency.tpot_s) == (0.5, None)
    latency.on_tokens(2, 11.5)
    assert latency.tpot_s == 0.5
    assert latency.total_s == 1.5


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_lies_within_its_values(values: list[float], share: float) -> None:
    assert min(values) - 1e-6 <= percentile(values, share) <= max(values) + 1e-6


@given(st.lists(st.integers(0, 5), max_size=30), st.lists(st.integers(0, 5), max_size=30), st.integers(1, 5))
def test_equal_prefixes_have_equal_hashes_and_nothing_else_has(left: list[int], right: list[int], size: int) -> None:
    for index, (ours, theirs) in enumerate(
        zip(page_hashes(left, size, ROOT), page_hashes(right, size, ROOT), strict=False)
    ):
        end = (index + 1) * size
        assert (ours == theirs) == (left[:end] == right[:end])


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 5), st.integers(0, 6))
def test_known_hashes_are_continued(tokens: list[int], size: int, known: int) -> None:
    whole = page_hashes(tokens, size, ROOT)
    assert page_hashes(tokens, size, ROOT, whole[:known]) == whole


def test_every_error_names_a_grpc_status_and_crosses_a_process_border() -> None:
    import grpc

    for name, kind in errors.ERRORS_BY_NAME.items():
        assert hasattr(grpc.StatusCode, kind.grpc_status)
        assert type(error_from_name(name, "x")) is kind
    assert isinstance(error_from_name("FromTheFuture", "x"), InternalError)
    assert BatonError("sentence").message == "sentence"
