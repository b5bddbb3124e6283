"""The warm-up runs once what a first request would otherwise pay for, and leaves no trace in the pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baton.engine.executor import TorchExecutor
from baton.engine.race.definition import KIND, TOP_K, row_parameters
from baton.engine.step import StepPlan, StepResult
from tests.checkpoints import build_checkpoint
from tests.engine.running import load_executor


def test_the_warm_up_samples_in_every_way_and_leaves_the_pages_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = load_executor(build_checkpoint(tmp_path, "llama3", seed=3))
    before = executor.pages.normal_().clone()
    plans: list[StepPlan] = []

    def execute(self: TorchExecutor, plan: StepPlan) -> StepResult:
        plans.append(plan)
        return self.collect(self.launch(plan))

    monkeypatch.setattr(TorchExecutor, "execute", execute)
    executor.warm_up()
    assert torch.equal(executor.pages, before)
    decoding = [sequence.sampling for plan in plans if plan.num_decodes for sequence in plan.sampling]
    rows = row_parameters(decoding, [0] * len(decoding), executor.config.vocab_size)
    ways = {(int(row[KIND]), bool(row[TOP_K])) for row in rows}
    assert ways == {(0, False), (2, False), (2, True)}, "greedy, top_p, and top_k: all kernels of a draw"
