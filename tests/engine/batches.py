"""Random ragged batches over paged storage, and the expected result of attention over them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from baton.engine.attention.backend import BatchLayout
from baton.engine.sequence import Sequence, page_ids
from baton.engine.step import Slice, StepPlan
from baton.engine.step_arrays import step_arrays
from baton.protocol.request import Request, SamplingParams


@dataclass(frozen=True, slots=True)
class Ragged:
    """(positions computed before, tokens of this step) per sequence; decoding sequences come first."""

    decodes: tuple[int, ...]
    chunks: tuple[tuple[int, int], ...]
    page_size: int
    seed: int

    @property
    def spans(self) -> list[tuple[int, int]]:
        return [*((start, 1) for start in self.decodes), *self.chunks]

    @property
    def num_pages(self) -> int:
        return sum(-(-(start + count) // self.page_size) for start, count in self.spans) + 3

    def plan(self) -> StepPlan:
        """A step over these sequences, each with pages of its own in random order."""
        rng = random.Random(self.seed)
        free = rng.sample(range(self.num_pages), self.num_pages)
        slices = []
        for index, (start, count) in enumerate(self.spans):
            prompt = tuple(rng.randrange(40) for _ in range(start + count))
            decodes = index < len(self.decodes)
            sequence = Sequence.start(Request(str(index), prompt[:-1] if decodes else prompt, SamplingParams()))
            if decodes:
                sequence.tokens.append(prompt[-1])
            sequence.computed = start
            sequence.page_table = page_ids(free.pop() for _ in range(-(-(start + count) // self.page_size)))
            slices.append(Slice(sequence, start, count, True))
        return StepPlan(tuple(slices))

    def layout(self) -> BatchLayout:
        return step_arrays(self.plan(), self.page_size).tensors()[2]


def ragged_batches() -> st.SearchStrategy[Ragged]:
    return st.builds(
        Ragged,
        decodes=st.lists(st.integers(1, 40), max_size=4).map(tuple),
        chunks=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), max_size=3).map(tuple),
        page_size=st.sampled_from([1, 4, 16]),
        seed=st.integers(0, 1000),
    ).filter(lambda batch: bool(batch.spans))


def filled_pages(batch: Ragged, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Storage with a random key and value at every position."""
    generator = torch.Generator().manual_seed(batch.seed)
    shape = (batch.num_pages, kv_heads, layers, 2, batch.page_size, head_dim)
    return torch.randn(shape, generator=generator).to(dtype)


def full_attention(
    batch: Ragged, pages: torch.Tensor, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Attention without metadata: keys and values gathered from each page table, in float64."""
    out = torch.empty(q.shape, dtype=torch.float64)
    begin = 0
    for part in batch.plan().slices:
        end, table = begin + part.num_tokens, part.sequence.page_table.tolist()
        past = [pages[table, :, layer, side].transpose(1, 2).flatten(0, 1)[: part.start] for side in (0, 1)]
        group = q.shape[1] // k.shape[1]
        keys = torch.cat((past[0], k[begin:end])).double().repeat_interleave(group, dim=1)
        values = torch.cat((past[1], v[begin:end])).double().repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q[begin:end].double(), keys) / q.shape[-1] ** 0.5
        seen = torch.arange(len(keys)) <= torch.arange(part.start, part.start + part.num_tokens).unsqueeze(1)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, values)
        begin = end
    return out
