"""Each rank's KV heads, and the pieces of a page between workers of any two degrees."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol.head_slices import heads_of, partners, pieces

DEGREES = st.sampled_from([1, 2, 4, 8, 16, 32])


@settings(deadline=None)
@given(DEGREES, DEGREES)
def test_ranks_keep_every_head_equally_often(num_kv_heads: int, num_ranks: int) -> None:
    kept = Counter(head for rank in range(num_ranks) for head in heads_of(num_kv_heads, num_ranks, rank))
    assert kept == dict.fromkeys(range(num_kv_heads), max(num_ranks // num_kv_heads, 1))


@settings(deadline=None)
@given(DEGREES, DEGREES, DEGREES)
def test_every_target_rank_gets_each_of_its_heads_once(num_kv_heads: int, sources: int, targets: int) -> None:
    arrived: dict[int, list[int]] = {rank: [] for rank in range(targets)}
    for rank in range(sources):
        ours = heads_of(num_kv_heads, sources, rank)
        for piece in pieces(num_kv_heads, sources, rank, targets):
            theirs = heads_of(num_kv_heads, targets, piece.target_rank)
            sent = ours[piece.source_head : piece.source_head + piece.num_heads]
            assert sent == theirs[piece.target_head : piece.target_head + piece.num_heads]
            arrived[piece.target_rank] += sent
    for rank in range(targets):
        assert sorted(arrived[rank]) == list(heads_of(num_kv_heads, targets, rank))


@settings(deadline=None)
@given(DEGREES, DEGREES)
def test_between_equal_degrees_each_rank_writes_whole_pages_to_its_counterpart(
    num_kv_heads: int, num_ranks: int
) -> None:
    for rank in range(num_ranks):
        (piece,) = pieces(num_kv_heads, num_ranks, rank, num_ranks)
        assert (piece.target_rank, piece.source_head, piece.target_head) == (rank, 0, 0)
        assert piece.num_heads == len(heads_of(num_kv_heads, num_ranks, rank))


@settings(deadline=None)
@given(DEGREES, DEGREES, DEGREES)
def test_two_ranks_are_partners_of_each_other_or_neither_is(num_kv_heads: int, ours: int, theirs: int) -> None:
    forth = {(rank, other) for rank in range(ours) for other in partners(num_kv_heads, ours, rank, theirs)}
    back = {(rank, other) for other in range(theirs) for rank in partners(num_kv_heads, theirs, other, ours)}
    assert forth == back
    assert (0, 0) in forth
    assert {other for _, other in forth} == set(range(theirs))
