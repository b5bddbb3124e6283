"""The model, and an executor that checks the KV it reads.

The model is a function of all tokens before, so `expected_output` computes each answer without any code of the cluster.
A page's memory is the (token, position) pairs that were computed into it, once for each KV head that a rank keeps, so a
page that was written late, too early, in part or for another sequence shows in the first step that reads it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import count
from operator import mul

from baton.engine.step import SampledToken, StepPlan, StepResult
from baton.protocol.request import Request

VOCAB, EOS = 97, 96

Slot = tuple[int, int] | None
"""The token and position whose KV stands there; None: garbage."""


class Violation(AssertionError):
    """The cluster broke a promise. The message says which."""


def next_token(tokens: Seq[int]) -> int:
    """The model: any function of the tokens will do."""
    weighed: int = sum(map(mul, tokens, count(1)))
    return (weighed * 31 + len(tokens)) % VOCAB


def expected_output(request: Request, ends: bool = True) -> list[int]:
    """The model's answer; `ends`: it has an end-of-sequence token."""
    tokens = list(request.prompt)
    output: list[int] = []
    while len(output) < request.sampling.max_tokens:
        output.append(next_token(tokens))
        tokens.append(output[-1])
        if ends and output[-1] == EOS:
            break
    return output


@dataclass(eq=False)
class PageMemory:
    """A worker's pages and host memory, and the executor over them. `pages` has those of each head of each rank."""

    worker: str
    num_pages: int
    page_size: int
    num_heads: int = 1  # over all ranks: copies of a head count
    pages: list[list[list[Slot]]] = field(init=False)
    host: dict[int, list[list[Slot]]] = field(default_factory=dict)  # by slot of host memory, of each head
    prefilled: int = 0  # tokens that were computed in chunks
    computed: int = 0  # positions, of all steps

    def __post_init__(self) -> None:
        self.pages = [[[None] * self.page_size for _ in range(self.num_pages)] for _ in range(self.num_heads)]

    def execute(self, plan: StepPlan) -> StepResult:
        """Check the KV that each slice reads, write its own, and answer where it samples. Raises `Violation`."""
        sampled = []
        self.computed += plan.num_tokens
        for part in plan.slices:
            sequence, tokens = part.sequence, part.sequence.tokens
            self.prefilled += 0 if sequence.decoding else part.num_tokens
            needed = list(zip(tokens[: part.start], range(part.start), strict=True))
            for pages in self.pages:
                if [slot for page in sequence.page_table for slot in pages[page]][: part.start] != needed:
                    raise Violation(f"{self.worker} reads foreign KV for {sequence.request_id}")
                for position in range(part.start, part.start + part.num_tokens):
                    page = sequence.page_table[position // self.page_size]
                    pages[page][position % self.page_size] = (tokens[position], position)
            if part.samples:
                if part.start + part.num_tokens != len(tokens):
                    raise Violation(f"{self.worker} samples {sequence.request_id} before its last token")
                sampled.append(SampledToken(next_token(tokens)))
        return StepResult(sampled)

    def swap_out(self, pages: Seq[int], slots: Seq[int]) -> None:
        """Copy pages to host memory, pairwise."""
        for page, slot in zip(pages, slots, strict=True):
            self.host[slot] = [list(head[page]) for head in self.pages]

    def swap_in(self, slots: Seq[int], pages: Seq[int]) -> None:
        """Copy slots of host memory back into pages, pairwise."""
        for slot, page in zip(slots, pages, strict=True):
            for head, content in zip(self.pages, self.host[slot], strict=True):
                head[page] = list(content)

    def corrupt(self, pages: Seq[int], head: int) -> None:
        """Fill a head of pages with garbage."""
        for page in pages:
            self.pages[head][page] = [None] * self.page_size
