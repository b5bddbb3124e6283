"""When the chunks of a prompt were computed, for the request's trace. Pure."""

from __future__ import annotations

from baton.engine.sequence import Sequence
from baton.engine.step import StepPlan
from baton.protocol.messages import MAX_CHUNKS, FirstToken


def note_chunks(plan: StepPlan, now: float) -> None:
    """The plan's step has ended; of each sequence the first MAX_CHUNKS chunks are noted."""
    for part in plan.slices[plan.num_decodes :]:
        if len(part.sequence.chunk_ends_s) < MAX_CHUNKS:
            part.sequence.chunk_ends_s.append(now)


def first_token(sequence: Sequence, now: float) -> FirstToken:
    """The report on a computed prompt, with the times of its chunks if there were several."""
    ends_s = sequence.chunk_ends_s
    ages_s = tuple([max(0.0, now - end_s) for end_s in ends_s]) if len(ends_s) > 1 else ()
    return FirstToken(sequence.request_id, ages_s)
