"""Makes the slow first calls before a worker serves."""

from __future__ import annotations

from typing import Protocol

import torch

from baton.engine.ranks import Ranks
from baton.engine.sequence import Sequence, page_ids
from baton.engine.step import Slice, StepPlan, StepResult
from baton.engine.step_arrays import StepArrays, step_arrays
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import PageLayout

_SAMPLINGS = (
    SamplingParams(),
    SamplingParams(temperature=1.0, top_p=0.9),
    SamplingParams(temperature=1.0, top_k=20, top_p=0.9),
)


class _WithPages(Protocol):
    pages: torch.Tensor
    layout: PageLayout
    ranks: Ranks

    def execute(self, plan: StepPlan) -> StepResult: ...

    def follow(self, arrays: StepArrays) -> object: ...


def warm_up(executor: _WithPages, context_tokens: int) -> None:
    """Run a small prefill and three decode steps, one greedy and two sampled, so that all kernels are loaded.

    Each rank of a worker calls it and runs the same steps. The contents of the pages are restored.
    """
    prompt = (0,) * min(8, context_tokens - 2)
    pages = list(range(-(-9 // executor.layout.page_size)))[: executor.layout.num_pages]
    kept = executor.pages[pages].clone()

    def sequence(sampling: SamplingParams, computed: int, output: tuple[int, ...] = ()) -> Sequence:
        begun = Sequence.start(Request("warm-up", prompt, sampling), output)
        begun.computed, begun.page_table = computed, page_ids(pages)
        return begun

    chunk = Slice(sequence(SamplingParams(), 0), 0, len(prompt), True)
    decodes = [Slice(sequence(sampling, len(prompt), (0,)), len(prompt), 1, True) for sampling in _SAMPLINGS]
    for part in (chunk, *decodes):
        plan = StepPlan((part,))
        if executor.ranks.rank == 0:
            executor.execute(plan)
        else:
            executor.follow(step_arrays(plan, executor.layout.page_size))
    executor.pages[pages] = kept
