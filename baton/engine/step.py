"""One step of the engine: a plan in, sampled tokens out.

A step is three verbs: a role *plans*, an executor *executes*, the role *absorbs*. Only the executor knows what a
tensor is; the simulator replaces it by a clock.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Protocol

from baton.engine.sequence import Sequence
from baton.protocol.worker import StepSample


@dataclass(slots=True)  # not frozen: one is made per sequence and step, and that would take twice as long
class Slice:
    """`num_tokens` tokens of one sequence, computed in this step from position `start`.

    The sequence's page table already covers `start + num_tokens` positions. `samples` is set when the slice reaches
    the last known token, so its logits give the next one.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What runs together in one step: any decode slices come first, then prefill chunks.

    `num_decodes` counts the leading slices of one token each; one that stands behind a chunk is a chunk of one token.
    """

    slices: tuple[Slice, ...]
    num_decodes: int = field(init=False)  # stored, because its sequences change with the step

    def __post_init__(self) -> None:
        decodes = takewhile(lambda part: part.num_tokens == 1 and part.sequence.decoding, self.slices)
        object.__setattr__(self, "num_decodes", sum(1 for _ in decodes))

    @property
    def num_tokens(self) -> int:
        return sum(part.num_tokens for part in self.slices)

    @property
    def sampling(self) -> list[Sequence]:
        """The sequences that get a token."""
        return [part.sequence for part in self.slices if part.samples]

    def sample(self, seconds: float) -> StepSample:
        """What the step computed, with the time it took."""
        decodes = self.num_decodes
        chunks = self.slices[decodes:]
        return StepSample(
            prefill_tokens=sum(part.num_tokens for part in chunks),
            prefill_pairs=sum(part.num_tokens * (2 * part.start + part.num_tokens) // 2 for part in chunks),
            decodes=decodes,
            context_tokens=sum(part.start + 1 for part in self.slices[:decodes]),
            seconds=seconds,
        )


@dataclass(slots=True)  # not frozen, as `Slice`
class SampledToken:
    """A chosen token; log-probabilities (natural, after penalties, before temperature) only when asked for."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """One `SampledToken` per slice of the plan that samples, in the plan's order."""

    tokens: Seq[SampledToken] = field(default_factory=tuple)


class Executor(Protocol):
    """Runs a plan in two halves: host work between them is free where a device computes asynchronously.

    Each launched step is collected before the next is launched, and no page is read or allocated in between.
    """

    async_execution: bool  # `launch` returns before the step has been computed

    def launch(self, plan: StepPlan) -> Any:
        """Start to compute the plan's tokens, write their KV, and sample."""
        ...

    def done(self, launched: Any) -> bool:
        """Whether `collect` would not wait."""
        ...

    def collect(self, launched: Any) -> StepResult:
        """Wait for a launched step. When it returns, the step's KV is in the pages, for peers and other streams too."""
        ...
