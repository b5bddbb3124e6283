"""The KV heads that each rank of a worker keeps, and the pieces in which a page travels between unequal workers. Pure.

A page is stored heads outermost, so a run of heads is one piece of it. With fewer KV heads than ranks, neighbouring
ranks keep copies of the same head.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of heads of every page that one rank writes to one rank of a peer."""

    target_rank: int
    source_head: int  # Index of the first one among the source rank's heads
    target_head: int  # The same among the target rank's
    num_heads: int


def heads_of(num_kv_heads: int, num_ranks: int, rank: int) -> range:
    """The KV heads of one rank; `num_ranks` divides `num_kv_heads`, or is a multiple of it."""
    if num_kv_heads >= num_ranks:
        count = num_kv_heads // num_ranks
        return range(rank * count, (rank + 1) * count)
    head = rank * num_kv_heads // num_ranks
    return range(head, head + 1)


def pieces(num_kv_heads: int, source_ranks: int, rank: int, target_ranks: int) -> tuple[Piece, ...]:
    """What rank `rank` of `source_ranks` writes: over all source ranks, each target rank gets each of its heads once.

    Where several source ranks keep a head, its target ranks are divided among them.
    """
    ours = heads_of(num_kv_heads, source_ranks, rank)
    copies = max(source_ranks // num_kv_heads, 1)
    found = []
    for target_rank in range(target_ranks):
        theirs = heads_of(num_kv_heads, target_ranks, target_rank)
        first, last = max(ours.start, theirs.start), min(ours.stop, theirs.stop)
        if first < last and target_rank % copies == rank % copies:
            found.append(Piece(target_rank, first - ours.start, first - theirs.start, last - first))
    return tuple(found)


def partners(num_kv_heads: int, num_ranks: int, rank: int, peer_ranks: int) -> tuple[int, ...]:
    """The ranks of a peer that rank `rank` of `num_ranks` writes to or is written by, ascending."""
    return tuple(
        other
        for other in range(peer_ranks)
        if any(piece.target_rank == other for piece in pieces(num_kv_heads, num_ranks, rank, peer_ranks))
        or any(piece.target_rank == rank for piece in pieces(num_kv_heads, peer_ranks, other, num_ranks))
    )
