"""Made-up sequences with pages of their own, and the steps over them. Pure but for the executor they are given to."""

from __future__ import annotations

import random

from cluster.request import Request, SamplingParams
from cluster.worker import PageLayout
from engine.batch import StepBudget, absorb_step, plan_step
from engine.sequence import Sequence
from engine.step import Executor, Slice, StepPlan


def pages_for(tokens: int, page_size: int) -> int:
    return -(-tokens // page_size)


def decoding(layout: PageLayout, vocab_size: int, batch: int, context: int, room: int, seed: int) -> list[Sequence]:
    """`batch` sequences that have computed `context` positions and will decode `room` tokens more.

    Their pages are drawn from all over the storage, as they lie after a while of serving.
    """
    rng = random.Random(seed)
    per_sequence = pages_for(context + room + 1, layout.page_size)
    pages = rng.sample(range(layout.num_pages), batch * per_sequence)
    sampling = SamplingParams(max_tokens=room + 2, ignore_eos=True)
    sequences = []
    for index in range(batch):
        prompt = tuple(rng.randrange(vocab_size) for _ in range(context))
        sequence = Sequence.start(Request(f"d{index}", prompt, sampling), (rng.randrange(vocab_size),))
        sequence.page_table = pages[index * per_sequence : (index + 1) * per_sequence]
        sequence.computed = context
        sequences.append(sequence)
    return sequences


def prefilling(layout: PageLayout, vocab_size: int, tokens: int, seed: int, chunk: int | None = None) -> list[StepPlan]:
    """The steps of one new prompt, in chunks or at once."""
    rng = random.Random(seed)
    prompt = tuple(rng.randrange(vocab_size) for _ in range(tokens))
    sequence = Sequence.start(Request("p", prompt, SamplingParams(ignore_eos=True)))
    sequence.page_table = rng.sample(range(layout.num_pages), pages_for(tokens + 1, layout.page_size))
    chunk = chunk or tokens
    starts = range(0, tokens, chunk)
    counts = [min(chunk, tokens - start) for start in starts]
    return [
        StepPlan((Slice(sequence, start, count, start + count == tokens),))
        for start, count in zip(starts, counts, strict=True)
    ]


def turn(executor: Executor, sequences: list[Sequence], budget: StepBudget) -> StepPlan:
    """Plan, execute and absorb one decode step of all the sequences."""
    plan = plan_step(sequences, (), budget)
    assert plan is not None
    absorb_step(plan, executor.execute(plan))
    return plan
