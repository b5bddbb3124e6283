"""Runs step plans with torch: owns the weights, the page storage, the attention backend and nothing else."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from cluster.errors import ConfigError
from cluster.request import Request, SamplingParams
from cluster.worker import PageLayout
from engine.allocator import keep_freed_memory
from engine.attention.backend import BatchLayout
from engine.attention.torch_cpu import TorchAttention
from engine.model_config import ModelConfig
from engine.models.decoder import Decoder
from engine.sampler import sample
from engine.sequence import Sequence
from engine.step import Slice, StepPlan, StepResult

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchExecutor:
    """`Executor` on the CPU.

    `pages` is the storage `[num_pages, num_layers, 2, page_size, kv_heads, head_dim]` that transfers read and write.
    """

    def __init__(self, config: ModelConfig, parameters: dict[str, torch.Tensor], layout: PageLayout) -> None:
        dtype = parameters["embed"].dtype
        if DTYPES.get(layout.dtype) is not dtype:
            raise ConfigError(f"The pages are {layout.dtype}, the weights {dtype}: they must be the same.")
        keep_freed_memory()
        self.config = config
        self.layout = layout
        self.pages = torch.zeros(layout.shape, dtype=dtype)
        self.model = Decoder(config, parameters)
        self._attention = TorchAttention(self.pages, config.num_heads)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the plan's tokens, write their KV, and sample where the plan says so."""
        for source, target in plan.page_copies:
            self.pages[target].copy_(self.pages[source])
        token_ids, layout = _batch(plan, self.layout.page_size)
        self._attention.plan(layout)
        sampling = [index for index, part in enumerate(plan.slices) if part.samples]
        rows = layout.qo_indptr[1:][sampling] - 1
        logits = self.model.forward(token_ids, layout.positions, rows, self._attention)
        sequences = [plan.slices[index].sequence for index in sampling]
        return StepResult(sample(logits, sequences, self.config.eos_token_ids))

    def page_checksum(self, page: int) -> int:
        """CRC-32 of a page's bytes, over all layers."""
        return zlib.crc32(self.pages[page].view(torch.uint8).cpu().numpy().data)

    def warm_up(self) -> None:
        """Run one small prefill and one decode step, so that the first request does not pay for first calls."""
        prompt = Sequence.start(Request("warm-up", (0,) * min(8, self.config.context_tokens - 2), SamplingParams()))
        prompt.page_table = list(range(-(-9 // self.layout.page_size)))[: self.layout.num_pages]
        kept = self.pages[prompt.page_table].clone()
        result = self.execute(StepPlan((Slice(prompt, 0, len(prompt.tokens), True),)))
        prompt.tokens.append(result.tokens[0].token_id)
        self.execute(StepPlan((Slice(prompt, len(prompt.tokens) - 1, 1, True),)))
        self.pages[prompt.page_table] = kept


def _batch(plan: StepPlan, page_size: int) -> tuple[torch.Tensor, BatchLayout]:
    """The plan as flat tensors: token ids `[tokens]` and the ragged layout."""
    token_ids: list[int] = []
    indices: list[int] = []
    starts, counts, pages = [], [], []
    for part in plan.slices:
        end = part.start + part.num_tokens
        used = -(-end // page_size)
        token_ids += part.sequence.tokens[part.start : end]
        indices += part.sequence.page_table[:used]
        starts.append(part.start)
        counts.append(part.num_tokens)
        pages.append(used)
    start, count, used_pages = np.array(starts), np.array(counts), np.array(pages)
    qo_indptr = np.concatenate(([0], count.cumsum()))
    positions = np.arange(len(token_ids)) - np.repeat(qo_indptr[:-1] - start, count)
    num_decodes = plan.num_decodes
    layout = BatchLayout(
        qo_indptr=torch.from_numpy(qo_indptr),
        indptr=torch.from_numpy(np.concatenate(([0], used_pages.cumsum()))),
        indices=torch.tensor(indices),
        last_page_len=torch.from_numpy(start + count - (used_pages - 1) * page_size),
        positions=torch.from_numpy(positions),
        num_decodes=num_decodes,
    )
    return torch.tensor(token_ids), layout
