"""First calls cost more than later ones, so the worker makes them before it serves."""

from __future__ import annotations

from typing import Protocol

import torch

from cluster.request import Request, SamplingParams
from cluster.worker import PageLayout
from engine.sequence import Sequence, page_ids
from engine.step import Slice, StepPlan, StepResult


class _WithPages(Protocol):
    pages: torch.Tensor
    layout: PageLayout

    def execute(self, plan: StepPlan) -> StepResult: ...


def warm_up(executor: _WithPages, context_tokens: int) -> None:
    """Run one small prefill and one decode step; the pages are as they were afterwards."""
    prompt = Sequence.start(Request("warm-up", (0,) * min(8, context_tokens - 2), SamplingParams()))
    pages = list(range(-(-9 // executor.layout.page_size)))[: executor.layout.num_pages]
    prompt.page_table = page_ids(pages)
    kept = executor.pages[pages].clone()
    result = executor.execute(StepPlan((Slice(prompt, 0, len(prompt.tokens), True),)))
    prompt.tokens.append(result.tokens[0].token_id)
    executor.execute(StepPlan((Slice(prompt, len(prompt.tokens) - 1, 1, True),)))
    executor.pages[pages] = kept
