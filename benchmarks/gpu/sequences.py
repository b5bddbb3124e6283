"""Synthetic sequences with their own pages, and steps over them. Pure except for the executor."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass
from typing import Any

from baton.engine.batch import StepBudget, absorb_step, plan_step
from baton.engine.sequence import Sequence, page_ids
from baton.engine.step import Executor, Slice, StepPlan
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import PageLayout


def pages_for(tokens: int, page_size: int) -> int:
    """Number of pages for this many tokens."""
    return -(-tokens // page_size)


def decoding(
    layout: PageLayout, vocab_size: int, batch: int, context: int, room: int, seed: int, **sampling: Any
) -> list[Sequence]:
    """`batch` sequences with `context` computed positions, which will decode `room` tokens more.

    Their pages are scattered over the storage, as after a while of serving. `sampling` has arguments of
    `SamplingParams`; the default is greedy.
    """
    rng = random.Random(seed)
    per_sequence = pages_for(context + room + 1, layout.page_size)
    pages = rng.sample(range(layout.num_pages), batch * per_sequence)
    params = SamplingParams(max_tokens=room + 2, ignore_eos=True, **sampling)
    sequences = []
    for index in range(batch):
        prompt = tuple(rng.randrange(vocab_size) for _ in range(context))
        sequence = Sequence.start(Request(f"d{index}", prompt, params), (rng.randrange(vocab_size),))
        sequence.page_table = page_ids(pages[index * per_sequence : (index + 1) * per_sequence])
        sequence.computed = context
        sequences.append(sequence)
    return sequences


def prefilling(layout: PageLayout, vocab_size: int, tokens: int, seed: int, chunk: int | None = None) -> list[StepPlan]:
    """The steps that prefill one new prompt, in chunks or at once."""
    rng = random.Random(seed)
    prompt = tuple(rng.randrange(vocab_size) for _ in range(tokens))
    sequence = Sequence.start(Request("p", prompt, SamplingParams(ignore_eos=True)))
    sequence.page_table = page_ids(rng.sample(range(layout.num_pages), pages_for(tokens + 1, layout.page_size)))
    chunk = chunk or tokens
    starts = range(0, tokens, chunk)
    counts = [min(chunk, tokens - start) for start in starts]
    return [
        StepPlan((Slice(sequence, start, count, start + count == tokens),))
        for start, count in zip(starts, counts, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds of a decode step's stages, and the number of positions that it read."""

    plan_s: float
    launch_s: float
    collect_s: float
    absorb_s: float
    context_tokens: int

    @property
    def seconds(self) -> float:
        return self.plan_s + self.launch_s + self.collect_s + self.absorb_s


def turn(executor: Executor, sequences: list[Sequence], budget: StepBudget) -> Turn:
    """Plan, execute and absorb one decode step of all sequences, as a worker's loop does."""
    moments = [time.perf_counter()]
    plan = plan_step(sequences, (), budget)
    assert plan is not None
    moments.append(time.perf_counter())
    launched = executor.launch(plan)
    moments.append(time.perf_counter())
    result = executor.collect(launched)
    moments.append(time.perf_counter())
    absorb_step(plan, result)
    moments.append(time.perf_counter())
    plan_s, launch_s, collect_s, absorb_s = (after - before for before, after in itertools.pairwise(moments))
    return Turn(plan_s, launch_s, collect_s, absorb_s, sum(part.start + 1 for part in plan.slices))
