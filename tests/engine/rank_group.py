"""Several ranks that compute together: rank 0 in the test's process, the others forked."""

from __future__ import annotations

import multiprocessing as mp
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from baton.engine import prompt_scores
from baton.engine.attention import flashinfer as backend
from baton.engine.checkpoint import read_config
from baton.engine.cuda_executor import CudaExecutor, CudaOptions
from baton.engine.executor import TorchExecutor
from baton.engine.ranks import ONE_RANK, ProcessGroupRanks, Ranks
from baton.engine.step import StepPlan, StepResult
from baton.engine.step_arrays import StepArrays, step_arrays
from baton.engine.storage import DTYPES
from baton.engine.weights import load_weights
from baton.harness.forked import forked
from tests.engine import flashinfer_reference

PAGE_SIZE, NUM_PAGES = 16, 64
WARM_UP = "warm up"


@dataclass(frozen=True)
class Build:
    """An executor over a checkpoint: the CPU's, or the GPU's on CPU tensors, plain or with the fused layers."""

    folder: Path
    dtype: str = "float32"
    executor: str = "cpu"

    @contextmanager
    def on(self, ranks: Ranks) -> Iterator[TorchExecutor | CudaExecutor]:
        """The executor of one rank, while the patches that it needs are made."""
        with pytest.MonkeyPatch.context() as patch:
            self._patch(patch)
            config = read_config(self.folder)
            parameters = load_weights(self.folder, config, DTYPES[self.dtype], ranks=ranks)
            layout = config.page_layout(NUM_PAGES, PAGE_SIZE, self.dtype, "m")
            if self.executor == "cpu":
                yield TorchExecutor(config, parameters, layout, ranks)
            else:
                options = CudaOptions(cuda_graphs=self.dtype == "float32", max_batch=4)  # A graph's logits are float32.
                yield CudaExecutor(config, parameters, layout, options, ranks=ranks)

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        patch.setitem(DTYPES, "float64", torch.float64)
        patch.setattr(prompt_scores, "MAX_LOGITS", 1300)  # Prompts are scored four positions at a time.
        if self.executor == "cpu":
            return
        patch.setitem(sys.modules, "flashinfer", flashinfer_reference)
        patch.setattr(backend, "KERNEL_DTYPES", (torch.float32, torch.float64))
        if self.executor == "fused":
            patch.delitem(sys.modules, "baton.engine.models.cuda_layers", raising=False)
            for name in ("baton.engine.models.layers.fused", "baton.engine.models.rope.fused"):
                patch.setattr(name, lambda x: True)


class Leader:
    """Rank 0: sends each step's arrays to the others before it computes its own share."""

    def __init__(self, executor: TorchExecutor | CudaExecutor, followers: list[Connection]) -> None:
        self.executor, self._followers = executor, followers
        self.config, self.layout = executor.config, executor.layout

    def execute(self, plan: StepPlan) -> StepResult:
        arrays = step_arrays(plan, self.layout.page_size)
        for follower in self._followers:
            follower.send(arrays)
        return self.executor.collect(self.executor.launch(plan, arrays))  # type: ignore[arg-type]


class RankGroup:
    """Ranks that build any number of executors, one after the other."""

    def __init__(self, num_ranks: int, folder: Path) -> None:
        self.num_ranks = num_ranks
        self.followers: list[Connection] = []
        self.processes = []
        for rank in range(1, num_ranks):
            ours, theirs = mp.Pipe()
            self.processes.append(forked(_follow, theirs, folder, rank, num_ranks))
            self.processes[-1].start()
            theirs.close()
            self.followers.append(ours)
        self.ranks = ProcessGroupRanks(folder, 0, num_ranks, "cpu")

    @contextmanager
    def build(self, build: Build) -> Iterator[Leader]:
        """The executor of rank 0, followed by the other ranks'."""
        for follower in self.followers:
            follower.send(build)
        with build.on(self.ranks) as executor:
            yield Leader(executor, self.followers)

    def call(self, task: Callable[[Ranks], object]) -> list[object]:
        """Every rank's result of a function of a module."""
        for follower in self.followers:
            follower.send(task)
        return [task(self.ranks), *(follower.recv() for follower in self.followers)]

    def warm_up(self) -> None:
        """Let the other ranks warm up the executor of `build`."""
        for follower in self.followers:
            follower.send(WARM_UP)

    def close(self) -> None:
        for follower, process in zip(self.followers, self.processes, strict=True):
            follower.close()
            process.join()
        self.ranks.close()


@contextmanager
def alone(build: Build) -> Iterator[Leader]:
    """The executor of a worker of one rank."""
    with build.on(ONE_RANK) as executor:
        yield Leader(executor, [])


def _follow(leader: Connection, folder: Path, rank: int, num_ranks: int) -> None:
    torch.set_num_threads(1)
    ranks = ProcessGroupRanks(folder, rank, num_ranks, "cpu")
    executor: Any = None
    with ExitStack() as built:
        while (command := _next(leader)) is not None:
            if isinstance(command, Build):
                built.close()
                executor = built.enter_context(command.on(ranks))
            elif isinstance(command, StepArrays):
                executor.follow(command)
            elif command == WARM_UP:
                executor.warm_up()
            else:
                leader.send(command(ranks))


def _next(leader: Connection) -> Any:
    """The next command; None when the test has ended."""
    try:
        return leader.recv()
    except EOFError:
        return None
