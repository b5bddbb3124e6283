"""One step of the engine: a plan in, sampled tokens out.

A step is three verbs: a role *plans*, an executor *executes*, the role *absorbs*. Only the executor handles tensors;
the simulator replaces it by a clock.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Protocol

from baton.engine.sequence import Sequence
from baton.protocol.prompt_logprobs import PromptLogprobs
from baton.protocol.worker import StepSample


@dataclass(slots=True)  # Not frozen, which would double the cost: one is made per sequence and step.
class Slice:
    """`num_tokens` tokens of one sequence, computed in this step from position `start`.

    The sequence's page table already covers `start + num_tokens` positions. `samples` is set when the slice reaches
    the last known token, so its logits give the next one.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool

    @property
    def scored(self) -> range:
        """The positions whose logits give the log-probabilities of the prompt tokens that follow them."""
        return range(self.start, min(self.start + self.num_tokens, self.sequence.score_until))


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What runs together in one step: any decode slices come first, then prefill chunks.

    `num_decodes` counts the leading slices of decoding sequences; such a slice behind a chunk counts as a chunk.
    """

    slices: tuple[Slice, ...]
    num_decodes: int = field(init=False)  # Stored, because the sequences change during the step.

    def __post_init__(self) -> None:
        decodes = takewhile(lambda part: part.num_tokens == 1 and part.sequence.decoding, self.slices)
        object.__setattr__(self, "num_decodes", sum(1 for _ in decodes))

    @property
    def num_tokens(self) -> int:
        """Tokens of all slices."""
        return sum(part.num_tokens for part in self.slices)

    @property
    def sampling(self) -> list[Sequence]:
        """The sequences that get a token."""
        return [part.sequence for part in self.slices if part.samples]

    @property
    def scoring(self) -> list[Slice]:
        """The slices whose prompt's log-probabilities are requested; decodes have none."""
        return [part for part in self.slices[self.num_decodes :] if part.scored]

    def sample(self, seconds: float) -> StepSample:
        """The amount of work in the step, with the time that it took."""
        decodes = self.num_decodes
        chunks = self.slices[decodes:]
        return StepSample(
            prefill_tokens=sum(part.num_tokens for part in chunks),
            prefill_pairs=sum(part.num_tokens * (2 * part.start + part.num_tokens) // 2 for part in chunks),
            decodes=decodes,
            context_tokens=sum(part.start + 1 for part in self.slices[:decodes]),
            seconds=seconds,
        )


@dataclass(slots=True)  # Not frozen, as `Slice`.
class SampledToken:
    """A chosen token; log-probabilities (natural, after penalties, before temperature) only if requested."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """A `SampledToken` for each slice of the plan that samples, and log-probabilities for each that is `scoring`.

    Both are in the plan's order.
    """

    tokens: Seq[SampledToken] = field(default_factory=tuple)
    prompt_logprobs: Seq[PromptLogprobs] = ()


class Executor(Protocol):
    """Runs a plan in two halves: host work between them is free where a device computes asynchronously.

    Each launched step is collected before the next is launched, and no page is read or allocated in between.
    """

    async_execution: bool  # Whether `launch` returns before the step has been computed.

    def launch(self, plan: StepPlan) -> Any:
        """Start to compute the plan's tokens, write their KV, and sample."""
        ...

    def done(self, launched: Any) -> bool:
        """Whether `collect` would not wait."""
        ...

    def collect(self, launched: Any) -> StepResult:
        """Wait for a launched step. On return, its KV is in the pages and visible to peers and other streams."""
        ...
