"""Drives an executor and a page pool directly, for tests of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from baton.engine.attention.backend import BatchLayout
from baton.engine.batch import StepBudget, absorb_step, plan_step
from baton.engine.checkpoint import model_id, read_config
from baton.engine.executor import TorchExecutor
from baton.engine.kv_pages import PagePool
from baton.engine.model_config import ModelConfig
from baton.engine.page_table import commit_pages, grow, take_pages
from baton.engine.sequence import Sequence
from baton.engine.step import SampledToken, StepPlan, StepResult
from baton.engine.weights import load_weights
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import PageLayout

ROOT = b"root"


class Runs(Protocol):
    """An executor that runs one step at a time."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def layout(self) -> PageLayout: ...

    def execute(self, plan: StepPlan) -> StepResult: ...


def load_executor(folder: Path, num_pages: int = 64, page_size: int = 16, dtype: str = "float32") -> TorchExecutor:
    config = read_config(folder)
    layout = config.page_layout(num_pages, page_size, dtype, model_id(folder))
    return TorchExecutor(config, load_weights(folder, config, getattr(torch, dtype)), layout)


def whole_prompt(length: int, page_size: int) -> BatchLayout:
    """The metadata of one sequence whose prompt is computed in a single step."""
    pages = -(-length // page_size)
    return BatchLayout(
        qo_indptr=torch.tensor([0, length], dtype=torch.int32),
        indptr=torch.tensor([0, pages], dtype=torch.int32),
        indices=torch.randperm(pages, dtype=torch.int32),
        last_page_len=torch.tensor([length - (pages - 1) * page_size], dtype=torch.int32),
        positions=torch.arange(length, dtype=torch.int32),
        num_decodes=0,
    )


def logits_of(executor: TorchExecutor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits at every position of one sequence."""
    layout = whole_prompt(len(tokens), executor.layout.page_size)
    with torch.inference_mode():
        executor._attention.plan(layout)
        return executor.model.forward(tokens, layout.positions, torch.arange(len(tokens)), executor._attention)


def generate(
    executor: Runs,
    prompts: list[list[int]],
    sampling: list[SamplingParams],
    chunk_tokens: int = 32,
) -> list[list[int]]:
    """Output tokens of all prompts, batched and in chunks, up to max_tokens or the end of the sequence."""
    answers = sampled_tokens(executor, prompts, sampling, chunk_tokens)
    return [[token.token_id for token in answer] for answer in answers]


def sampled_tokens(
    executor: Runs,
    prompts: list[list[int]],
    sampling: list[SamplingParams],
    chunk_tokens: int = 32,
) -> list[list[SampledToken]]:
    """`generate`, with the requested log-probabilities."""
    pool = PagePool(executor.layout.num_pages, executor.layout.page_size)
    sequences = [
        Sequence.start(Request(str(index), tuple(prompt), params))
        for index, (prompt, params) in enumerate(zip(prompts, sampling, strict=True))
    ]
    answers: dict[str, list[SampledToken]] = {sequence.request_id: [] for sequence in sequences}
    live = list(sequences)
    for sequence in live:
        assert take_pages(sequence, pool, ROOT)
    while live:
        for sequence in live:
            assert grow(sequence, pool)
        decoding = [sequence for sequence in live if sequence.decoding]
        prefilling = [sequence for sequence in live if not sequence.decoding]
        plan = plan_step(decoding, prefilling, StepBudget(chunk_tokens, 64))
        assert plan is not None
        result = executor.execute(plan)
        absorb_step(plan, result)
        for sequence, token in zip(plan.sampling, result.tokens, strict=True):
            answers[sequence.request_id].append(token)
        for part in plan.slices:
            commit_pages(part.sequence, pool, lambda sequence: ROOT)
        config = executor.config
        live = [
            sequence
            for sequence in live
            if not sequence.num_output or sequence.finish_reason(config.eos_token_ids, config.context_tokens) is None
        ]
    return list(answers.values())
