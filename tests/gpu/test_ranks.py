"""Ranks on GPUs: NCCL's collectives, and ports on loopback alone."""

from __future__ import annotations

import multiprocessing as mp
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from baton.builtin_model import CHECKPOINT
from baton.engine.checkpoint import read_config
from baton.engine.ranks import ProcessGroupRanks
from baton.engine.weights import load_weights
from baton.harness.forked import forked
from tests.engine.test_rank_weights import Place
from tests.engine.test_ranks import own_ports


def _join(folder: Path, rank: int, num_ranks: int, to_test: Connection) -> None:
    """Send (sum, gathered columns, minimum, addresses of ports) of a rank."""
    ranks = ProcessGroupRanks(folder, rank, num_ranks, f"cuda:{rank}")
    x = torch.full((3, 4), rank + 1.0, dtype=torch.bfloat16, device=f"cuda:{rank}")
    gathered = ranks.gather_columns(x).tolist()
    to_test.send((ranks.all_reduce(x).tolist(), gathered, ranks.minimum(7 - rank), own_ports(ranks)))
    ranks.close()


def test_a_rank_loads_the_same_weights_as_on_the_cpu(device: torch.device) -> None:
    config = read_config(CHECKPOINT)
    for rank in range(2):
        here = load_weights(CHECKPOINT, config, torch.bfloat16, ranks=Place(2, rank))
        there = load_weights(CHECKPOINT, config, torch.bfloat16, str(device), ranks=Place(2, rank))
        assert all(torch.equal(there[name].cpu(), value) for name, value in here.items())


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_ranks_add_gather_and_agree_and_listen_on_loopback_only(tmp_path: Path, num_ranks: int) -> None:
    if torch.cuda.device_count() < num_ranks:
        pytest.skip(f"needs {num_ranks} GPUs")
    receivers = []
    for rank in range(num_ranks):
        receiver, sender = mp.Pipe(duplex=False)
        forked(_join, tmp_path, rank, num_ranks, sender).start()
        sender.close()
        receivers.append(receiver)
    total = float(sum(range(1, num_ranks + 1)))
    for rank, receiver in enumerate(receivers):
        added, gathered, smallest, addresses = receiver.recv()
        assert added == [[total] * 4] * 3
        columns = range(1, num_ranks + 1) if rank == 0 else [rank + 1]
        assert gathered == [[float(value) for value in columns for _ in range(4)]] * 3
        assert smallest == 8 - num_ranks
        assert set(addresses) <= {"0100007F"}, "127.0.0.1"
