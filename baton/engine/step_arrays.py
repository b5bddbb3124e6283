"""Turns a step plan into the flat arrays that the model and the attention kernels read, on every rank of a worker."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import torch

from baton.engine.attention.backend import BatchLayout
from baton.engine.step import StepPlan


@dataclass(frozen=True, slots=True)
class StepArrays:
    """A step of n sequences, the first `num_decodes` with one token; all arrays are int32. It pickles.

    | field         | shape      | meaning                                                                          |
    | ------------- | ---------- | -------------------------------------------------------------------------------- |
    | token_ids     | [tokens]   | of all sequences, one after the other                                            |
    | qo_indptr …   |            | as in `BatchLayout`                                                              |
    | sampled       | [sampling] | rows whose logits give a next token                                              |
    | scored        |            | rows whose logits give log-probabilities of a prompt: a range per slice that has |
    """

    token_ids: np.ndarray
    qo_indptr: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    last_page_len: np.ndarray
    positions: np.ndarray
    sampled: np.ndarray
    scored: tuple[range, ...]
    num_decodes: int

    @property
    def only_decodes(self) -> bool:
        """Whether every sequence decodes."""
        return self.num_decodes == len(self.last_page_len)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, BatchLayout]:
        """(token ids, sampled rows, layout), in the arrays' memory."""
        view = torch.from_numpy
        layout = BatchLayout(
            qo_indptr=view(self.qo_indptr),
            indptr=view(self.indptr),
            indices=view(self.indices),
            last_page_len=view(self.last_page_len),
            positions=view(self.positions),
            num_decodes=self.num_decodes,
        )
        return view(self.token_ids), view(self.sampled), layout


def step_arrays(plan: StepPlan, page_size: int) -> StepArrays:
    """The arrays of a plan.

    Page tables are int32 arrays, so joining them copies memory: a batch of 256 sequences with 256 pages each
    takes 0.04 ms.
    """
    token_ids, indices = array("i"), array("i")
    starts, ends, pages, sampling = [], [], [], []
    for index, part in enumerate(plan.slices):
        end = part.start + part.num_tokens
        used = -(-end // page_size)
        token_ids.extend(part.sequence.tokens[part.start : end])
        indices.extend(part.sequence.page_table[:used])
        starts.append(part.start)
        ends.append(end)
        pages.append(used)
        if part.samples:
            sampling.append(index)
    begins, lengths, used_pages = (np.array(values, dtype=np.int32) for values in (starts, ends, pages))
    counts = lengths - begins
    qo_indptr = _indptr(counts)
    positions = np.arange(len(token_ids), dtype=np.int32) - np.repeat(qo_indptr[:-1] - begins, counts)
    return StepArrays(
        token_ids=np.frombuffer(token_ids, dtype=np.int32),
        qo_indptr=qo_indptr,
        indptr=_indptr(used_pages),
        indices=np.frombuffer(indices, dtype=np.int32),
        last_page_len=lengths - (used_pages - 1) * page_size,
        positions=positions,
        sampled=qo_indptr[1:][sampling] - 1,
        scored=_scored(plan, qo_indptr),
        num_decodes=plan.num_decodes,
    )


def _scored(plan: StepPlan, qo_indptr: np.ndarray) -> tuple[range, ...]:
    """The rows of each slice of `plan.scoring`, in order."""
    ranges = []
    for index in range(plan.num_decodes, len(plan.slices)):
        part = plan.slices[index]
        if part.scored:
            begin = int(qo_indptr[index]) + part.scored.start - part.start
            ranges.append(range(begin, begin + len(part.scored)))
    return tuple(ranges)


def _indptr(counts: np.ndarray) -> np.ndarray:
    """Where each of `counts` consecutive runs begins, and where the last one ends; int32."""
    indptr = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=indptr[1:])
    return indptr
