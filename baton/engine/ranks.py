"""The collectives of a worker's ranks: processes of one host that compute each step together.

Every rank calls the same collectives in the same order. Rank 0 samples; the others only contribute to its logits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from baton.engine.cuda_device import open_device
from baton.protocol.errors import InternalError

LOOPBACK, LOOPBACK_INTERFACE = "127.0.0.1", "lo"


class Ranks(Protocol):
    """The group as one of its ranks uses it. Errors: `InternalError` when another rank has ended."""

    @property
    def rank(self) -> int: ...

    @property
    def num_ranks(self) -> int: ...

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of every rank's contiguous `x`, equal on all ranks; may be in the memory of `x`.

        On CPUs, an element of the sum depends on the elements that are added, never on the shape of `x`.
        """
        ...

    def gather_columns(self, x: torch.Tensor) -> torch.Tensor:
        """On rank 0, every rank's contiguous `x`, concatenated along the last dimension; on others, `x`."""
        ...

    def minimum(self, value: int) -> int:
        """The smallest of the ranks' values."""
        ...


class OneRank:
    """A worker of one process."""

    rank = 0
    num_ranks = 1

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather_columns(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def minimum(self, value: int) -> int:
        return value


ONE_RANK = OneRank()


class ProcessGroupRanks:
    """Several processes: gloo between CPUs, NCCL between GPUs, both on the loopback interface alone.

    The processes find each other through a file in `folder`, which only their user should be able to read.
    """

    def __init__(self, folder: Path, rank: int, num_ranks: int, device: torch.device | str) -> None:
        """Returns once every rank has called it; `device` is that of the tensors.

        Raises `ConfigError` with the reason when a GPU cannot serve.
        """
        self.rank, self.num_ranks = rank, num_ranks
        self._device = torch.device(device) if torch.device(device).type == "cpu" else open_device(str(device))
        store = dist.FileStore(str(folder / "ranks"), num_ranks)
        self._group = (_nccl if self._device.type == "cuda" else _gloo)(store, rank, num_ranks)
        # Two numbers have one sum. More are added by gloo in an order that depends on their place in the tensor.
        self._in_order = self._device.type != "cuda" and num_ranks > 2
        self.minimum(0)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        with _as_internal_error():
            if not self._in_order:
                self._group.allreduce([x]).wait()
                return x
            parts = [torch.empty_like(x) for _ in range(self.num_ranks)]
            self._group.allgather([parts], [x]).wait()
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total

    def gather_columns(self, x: torch.Tensor) -> torch.Tensor:
        options = dist.GatherOptions()
        options.rootRank = 0
        parts = [] if self.rank else [torch.empty_like(x) for _ in range(self.num_ranks)]
        with _as_internal_error():
            self._group.gather([parts] if parts else [], [x], options).wait()
        return torch.cat(parts, dim=-1) if parts else x

    def minimum(self, value: int) -> int:
        number = torch.tensor([value], dtype=torch.int64, device=self._device)
        with _as_internal_error():
            self._group.allreduce([number], dist.ReduceOp.MIN).wait()
        return int(number.item())

    def close(self) -> None:
        """End the group; the other ranks' next collective fails."""
        self._group.shutdown()


@contextmanager
def _as_internal_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InternalError(
            f"The ranks of this worker cannot exchange values, as after a rank's end: {reason}"
        ) from None


def _gloo(store: dist.Store, rank: int, num_ranks: int) -> Any:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=LOOPBACK)]
    return gloo(store, rank, num_ranks, options)


def _nccl(store: dist.Store, rank: int, num_ranks: int) -> Any:
    os.environ["NCCL_SOCKET_IFNAME"] = f"={LOOPBACK_INTERFACE}"  # An exact name; read when the group opens.
    return dist.ProcessGroupNCCL(store, rank, num_ranks, dist.ProcessGroupNCCL.Options())
