"""A worker without I/O: its session, queues for its links, and a memory in place of the engine.

The memory remembers which token stands in which slot of which page: a page that was written late, too early or by the
wrong request shows at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from baton.engine.step import SampledToken, StepPlan, StepResult
from baton.protocol.handoff import HandoffNotice
from baton.protocol.messages import RouterMessage, WorkerMessage
from baton.protocol.request import Request
from baton.worker.core.role import Role, WritePages
from baton.worker.core.state import WorkerState
from baton.worker.session import Phase, WorkerSession

PAGE_SIZE, VOCAB, EOS, CONTEXT_TOKENS = 4, 97, 96, 1000
WRITE_STALL_S = 0.5


def next_token(tokens: Seq[int]) -> int:
    """The model: any function of the tokens will do."""
    return (sum((index + 1) * token for index, token in enumerate(tokens)) * 31 + len(tokens)) % VOCAB


def expected_output(request: Request, ends: bool = True) -> list[int]:
    """What the model answers, computed without any of the cluster's code; `ends`: it has an end-of-sequence token."""
    tokens = list(request.prompt)
    output: list[int] = []
    while len(output) < request.sampling.max_tokens:
        output.append(next_token(tokens))
        tokens.append(output[-1])
        if ends and output[-1] == EOS:
            break
    return output


@dataclass(eq=False)
class PureWorker:
    """One worker: session, page memory and the queues of its links."""

    session: WorkerSession
    memory: list[list[tuple[int, int] | None]]
    inbox: deque[RouterMessage] = field(default_factory=deque)
    notices: deque[HandoffNotice] = field(default_factory=deque)
    peers: set[str] = field(default_factory=set)
    silent: bool = False  # stopped: it computes and sends nothing
    prefilled: int = 0  # tokens that were computed in chunks
    stepping: tuple[StepPlan, StepResult] | None = None  # computed, and not absorbed yet
    host: dict[int, list[tuple[int, int] | None]] = field(default_factory=dict)  # by slot of host memory
    computed: int = 0  # positions, of all its steps
    granted: dict[tuple[str, int], int] = field(default_factory=dict)  # (agent, page) → generation it may write into
    granted_by: dict[tuple[str, int], str] = field(default_factory=dict)  # and the reservation it is of

    @property
    def name(self) -> str:
        return self.session.info.name

    @property
    def incarnation(self) -> int:
        return int(self.session.info.incarnation)

    @property
    def role(self) -> Role:
        return self.session.role

    @property
    def state(self) -> WorkerState:
        return self.session.state

    @property
    def outbox(self) -> list[WorkerMessage]:
        """On its way to the router."""
        return self.session.outbox

    @property
    def serving(self) -> bool:
        return self.session.phase is Phase.SERVING

    @property
    def leaving(self) -> bool:
        return self.session.phase is Phase.LEAVING

    def execute(self, plan: StepPlan) -> StepResult:
        """Check the KV each slice reads, write its own, and answer where it samples."""
        sampled = []
        self.computed += plan.num_tokens
        for part in plan.slices:
            sequence = part.sequence
            self.prefilled += 0 if sequence.decoding else part.num_tokens
            for position in range(part.start):
                slot = self.memory[sequence.page_table[position // PAGE_SIZE]][position % PAGE_SIZE]
                assert slot == (sequence.tokens[position], position), f"{self.name} reads foreign KV"
            for position in range(part.start, part.start + part.num_tokens):
                page = sequence.page_table[position // PAGE_SIZE]
                self.memory[page][position % PAGE_SIZE] = (sequence.tokens[position], position)
            if part.samples:
                assert part.start + part.num_tokens == len(sequence.tokens)
                sampled.append(SampledToken(next_token(sequence.tokens)))
        return StepResult(sampled)


@dataclass(eq=False)
class PureWrite:
    """A write on its way. The bytes may land before its end is known, also while the writer is silent."""

    source: PureWorker
    command: WritePages
    landed: bool = False
    called_off: bool = False  # it has ended for its source, but may still arrive
    until_s: float = math.inf  # its source is dead: nothing of it arrives any more from then on
