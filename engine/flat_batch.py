"""A step plan as flat tensors: what the model and the attention kernels read."""

from __future__ import annotations

import numpy as np
import torch

from engine.attention.backend import BatchLayout
from engine.step import StepPlan


def flat_batch(plan: StepPlan, page_size: int) -> tuple[torch.Tensor, BatchLayout]:
    """Token ids `[tokens]` and the ragged layout, int64 on the CPU."""
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
    layout = BatchLayout(
        qo_indptr=torch.from_numpy(qo_indptr),
        indptr=torch.from_numpy(np.concatenate(([0], used_pages.cumsum()))),
        indices=torch.tensor(indices),
        last_page_len=torch.from_numpy(start + count - (used_pages - 1) * page_size),
        positions=torch.from_numpy(positions),
        num_decodes=plan.num_decodes,
    )
    return torch.tensor(token_ids), layout


def sampled_rows(plan: StepPlan, layout: BatchLayout) -> torch.Tensor:
    """The rows whose logits give a next token: the last of each slice that samples."""
    sampling = [index for index, part in enumerate(plan.slices) if part.samples]
    return layout.qo_indptr[1:][sampling] - 1
