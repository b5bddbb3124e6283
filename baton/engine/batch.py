"""Continuous batching: which sequences run in the next step, and how a step's result changes them.

Decodes come first, one token each. The rest of the token budget goes to prefill chunks in the order of the sequences,
so several short prompts share a step and a long one is spread over many (chunked prefill, Sarathi-Serve, Agrawal et
al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from baton.engine.sequence import Sequence
from baton.engine.step import SampledToken, Slice, StepPlan, StepResult
from baton.protocol.errors import InternalError


@dataclass(frozen=True, slots=True)
class StepBudget:
    """Limits of one step: the total number of tokens, and the number of sequences that decode.

    `mixed_chunk_tokens` bounds the prompt tokens that run beside decodes, because all decodes wait for them;
    None means that only `chunk_tokens` does.
    """

    chunk_tokens: int
    max_batch: int
    mixed_chunk_tokens: int | None = None


def plan_step(decoding: Seq[Sequence], prefilling: Iterable[Sequence], budget: StepBudget) -> StepPlan | None:
    """The next step, or None if there is nothing to compute. Every sequence must have its pages."""
    decodes = [Slice(sequence, sequence.computed, 1, True) for sequence in decoding[: budget.max_batch]]
    slices = decodes
    room = budget.chunk_tokens - len(decodes)
    if decodes and budget.mixed_chunk_tokens is not None:
        room = min(room, budget.mixed_chunk_tokens)
    for sequence in prefilling:
        if room <= 0:
            break
        count = min(sequence.uncomputed, room)
        slices.append(Slice(sequence, sequence.computed, count, count == sequence.uncomputed))
        room -= count
    return StepPlan(tuple(slices)) if slices else None


def absorb_step(plan: StepPlan, result: StepResult) -> list[tuple[Sequence, SampledToken]]:
    """Advance the plan's sequences; returns the sampled ones, each with its token.

    Raises `InternalError` when the result has fewer tokens than the plan samples, or fewer scores than it asks for.
    """
    scoring = plan.scoring
    if len(result.prompt_logprobs) != len(scoring):
        raise InternalError("The executor returned other log-probabilities of prompts than the plan asks for.")
    sampled = []
    tokens = iter(result.tokens)
    for part in plan.slices:
        part.sequence.computed = part.start + part.num_tokens
        if part.samples:
            token = next(tokens, None)
            if token is None:
                raise InternalError("The executor returned fewer tokens than the plan samples.")
            part.sequence.tokens.append(token.token_id)
            sampled.append((part.sequence, token))
    for part in scoring:
        if part.sequence.computed >= part.sequence.score_until:
            part.sequence.score_until = 0
    return sampled
