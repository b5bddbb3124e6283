"""Ranks find each other through a file, add up in an order that the batch does not change, and listen on loopback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from baton.engine.ranks import ProcessGroupRanks, Ranks
from baton.harness.forked import forked
from baton.protocol.errors import ConfigError, InternalError
from tests.engine.rank_group import RankGroup

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _part(rank: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(130, 24, generator=torch.Generator().manual_seed(rank)).to(dtype)


def _sums(ranks: Ranks) -> list[list[torch.Tensor]]:
    """The sums of many rows at once, of one row, and of a few."""
    pieces = (slice(0, 130), slice(7, 8), slice(5, 40))
    return [[ranks.all_reduce(_part(ranks.rank, dtype)[piece].clone()) for piece in pieces] for dtype in DTYPES]


def test_a_sum_is_equal_on_all_ranks_and_does_not_depend_on_the_rows_beside_it(group: RankGroup) -> None:
    results = group.call(_sums)
    for index, dtype in enumerate(DTYPES):
        total = _part(0, dtype)
        for rank in range(1, group.num_ranks):
            total += _part(rank, dtype)
        for result in results:
            whole, row, few = result[index]  # type: ignore[index]
            assert torch.equal(whole, total)
            assert torch.equal(row, total[7:8])
            assert torch.equal(few, total[5:40])


def _columns(ranks: Ranks) -> torch.Tensor:
    return ranks.gather_columns(_part(ranks.rank, torch.float32))


def test_rank_0_gathers_the_columns_of_all(group: RankGroup) -> None:
    parts = [_part(rank, torch.float32) for rank in range(group.num_ranks)]
    gathered = group.call(_columns)
    for got, expected in zip(gathered, [torch.cat(parts, dim=1), *parts[1:]], strict=True):
        assert isinstance(got, torch.Tensor)
        assert torch.equal(got, expected)


def _smallest(ranks: Ranks) -> int:
    return ranks.minimum((1 << 40) - ranks.rank)


def test_the_ranks_agree_on_the_smallest_number(group: RankGroup) -> None:
    assert group.call(_smallest) == [(1 << 40) - group.num_ranks + 1] * group.num_ranks


def own_ports(ranks: Ranks) -> list[str]:
    """Local addresses on which this process listens, in the kernel's hexadecimal form."""
    own = {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]


def test_no_rank_listens_beyond_loopback(group: RankGroup) -> None:
    _, *followers = group.call(own_ports)  # Other tests may have left ports open in the process of rank 0.
    for addresses in followers:
        assert addresses, "a rank listens for its peers"
        assert set(addresses) == {"0100007F"}, "127.0.0.1"  # type: ignore[call-overload]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported_before_the_ranks_meet(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="finds no GPU here"):
        ProcessGroupRanks(tmp_path, 0, 2, "cuda:0")


def _join_and_end(folder: Path) -> None:
    ProcessGroupRanks(folder, 1, 2, "cpu")
    os._exit(0)


def test_the_end_of_another_rank_is_an_error_of_the_next_sum(tmp_path: Path) -> None:
    other = forked(_join_and_end, tmp_path)
    other.start()
    ranks = ProcessGroupRanks(tmp_path, 0, 2, "cpu")
    other.join()
    with pytest.raises(InternalError, match="cannot exchange values, as after a rank's end"):
        ranks.all_reduce(torch.ones(3))
