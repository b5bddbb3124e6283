"""Runs step plans with torch on the CPU: owns the weights, the page storage and the attention backend."""

from __future__ import annotations

import torch

from baton.engine.allocator import keep_freed_memory
from baton.engine.attention.torch_cpu import TorchAttention
from baton.engine.flat_batch import flat_batch, sampled_rows
from baton.engine.model_config import ModelConfig
from baton.engine.models.decoder import Decoder
from baton.engine.prompt_scores import read_scores, score_on_device
from baton.engine.sampler import sample
from baton.engine.step import StepPlan, StepResult
from baton.engine.storage import DTYPES, head_checksums, page_checksum, page_dtype
from baton.engine.warm_up import warm_up
from baton.protocol.worker import PageLayout

__all__ = ["DTYPES", "TorchExecutor"]


class TorchExecutor:
    """`Executor` on the CPU.

    `pages` is the storage `[num_pages, kv_heads, num_layers, 2, page_size, head_dim]` that transfers read and write.
    """

    async_execution = False

    def __init__(self, config: ModelConfig, parameters: dict[str, torch.Tensor], layout: PageLayout) -> None:
        dtype = page_dtype(layout, parameters)
        keep_freed_memory()
        self.config = config
        self.layout = layout
        self.pages = torch.zeros(layout.shape, dtype=dtype)
        self.model = Decoder(config, parameters)
        self._attention = TorchAttention(self.pages, config.num_heads)

    def execute(self, plan: StepPlan) -> StepResult:
        return self.collect(self.launch(plan))

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> StepResult:
        """Compute the whole step: on the CPU nothing is asynchronous."""
        token_ids, layout = flat_batch(plan, self.layout.page_size)
        self._attention.plan(layout)
        hidden = self.model.hidden(token_ids, layout.positions, self._attention)
        logits = self.model.logits(hidden[sampled_rows(plan, layout)])
        tokens = sample(logits, plan.sampling, self.config.eos_token_ids)
        scores = score_on_device(self.model, hidden, plan) if plan.scoring else ()
        return StepResult(tokens, read_scores(scores))

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
        warm_up(self, self.config.context_tokens)
