"""Runs step plans with torch on the CPU: owns the weights, the page storage and the attention backend."""

from __future__ import annotations

from dataclasses import replace

import torch

from baton.engine.allocator import keep_freed_memory
from baton.engine.attention.torch_cpu import TorchAttention
from baton.engine.model_config import ModelConfig
from baton.engine.models.decoder import Decoder
from baton.engine.prompt_scores import follow_scores, read_scores, score_on_device
from baton.engine.ranks import ONE_RANK, Ranks
from baton.engine.sampler import sample
from baton.engine.step import StepPlan, StepResult
from baton.engine.step_arrays import StepArrays, step_arrays
from baton.engine.storage import DTYPES, head_checksums, page_checksum, page_dtype
from baton.engine.warm_up import warm_up
from baton.protocol.worker import PageLayout

__all__ = ["DTYPES", "TorchExecutor"]


class TorchExecutor:
    """`Executor` on the CPU, on one rank of a worker.

    `pages` is the storage `[num_pages, kv_heads, num_layers, 2, page_size, head_dim]` that transfers read and write,
    with this rank's heads only; `layout` is the whole worker's. Rank 0 launches each step, the others `follow` it.
    """

    async_execution = False

    def __init__(
        self, config: ModelConfig, parameters: dict[str, torch.Tensor], layout: PageLayout, ranks: Ranks = ONE_RANK
    ) -> None:
        dtype = page_dtype(layout, parameters)
        keep_freed_memory()
        self.config = config
        self.layout = layout
        self.ranks = ranks
        own = config.slice(ranks.num_ranks, ranks.rank)
        self.pages = torch.zeros(replace(layout, num_kv_heads=own.num_kv_heads).shape, dtype=dtype)
        self.model = Decoder(config, parameters, ranks)
        self._attention = TorchAttention(self.pages, own.num_heads)

    def execute(self, plan: StepPlan) -> StepResult:
        return self.collect(self.launch(plan))

    @torch.inference_mode()
    def launch(self, plan: StepPlan, arrays: StepArrays | None = None) -> StepResult:
        """Compute the whole step: on the CPU nothing is asynchronous. `arrays` are the plan's, if they exist."""
        arrays = arrays or step_arrays(plan, self.layout.page_size)
        hidden, logits = self._compute(arrays)
        tokens = sample(logits, plan.sampling, self.config.eos_token_ids)
        scores = score_on_device(self.model, hidden, arrays.scored, plan) if arrays.scored else ()
        return StepResult(tokens, read_scores(scores))

    @torch.inference_mode()
    def follow(self, arrays: StepArrays) -> StepResult:
        """Compute this rank's share of a step that rank 0 launches; it is `done` then, and has no tokens."""
        hidden, _ = self._compute(arrays)
        follow_scores(self.model, hidden, arrays.scored)
        return StepResult()

    def _compute(self, arrays: StepArrays) -> tuple[torch.Tensor, torch.Tensor]:
        """The last layer's output for every token, and the logits of the sampled rows."""
        token_ids, sampled, layout = arrays.tensors()
        self._attention.plan(layout)
        hidden = self.model.hidden(token_ids, layout.positions, self._attention)
        return hidden, self.model.logits(hidden[sampled])

    def done(self, launched: StepResult) -> bool:
        return True

    def collect(self, launched: StepResult) -> StepResult:
        return launched

    def page_checksum(self, page: int) -> int:
        """Of a page of a worker of one rank."""
        return page_checksum(self.head_checksums(page))

    def head_checksums(self, page: int) -> list[int]:
        """CRC-32 of the page's bytes of each of this rank's KV heads."""
        return head_checksums(self.pages, page)

    def warm_up(self) -> None:
        """Make the slow first calls; every rank calls it."""
        warm_up(self, self.config.context_tokens)
