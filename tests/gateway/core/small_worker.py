"""A worker as a gateway sees it: sequences that gain a token per step, and a link that may lose frames."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from baton.protocol.gateway_messages import (
    EmittedTokens,
    LinkUp,
    StepOutput,
    Submit,
    TokenOutput,
)
from baton.protocol.messages import Work
from baton.protocol.request import FinishReason, Request
from tests.gateway.core.clients import tokens_of


@dataclass(eq=False)
class Sequence:
    """A request on a worker, of which `num_tokens` were sampled."""

    asked: Request
    num_tokens: int
    running: bool = True

    def output(self, index: int) -> TokenOutput:
        tokens = tokens_of(self.asked)
        reason = FinishReason.LENGTH if len(tokens) == self.asked.sampling.max_tokens else FinishReason.STOP
        finish = reason if index + 1 == len(tokens) else None
        return TokenOutput(self.asked.request_id, index, tokens[index], finish=finish)


@dataclass(eq=False)
class Worker:
    """A worker with its link to the gateway; `orders` of the router wait until a step has ended."""

    up: bool = False
    attached: bool = False
    sequences: dict[str, Sequence] = field(default_factory=dict)
    orders: deque[tuple[str, Submit | EmittedTokens | None]] = field(default_factory=deque)
    frames: deque[LinkUp | StepOutput] = field(default_factory=deque)

    def step(self) -> list[str]:
        """Sample one token of each sequence, then follow the orders; the ids of sequences that ended."""
        ended, outputs = [], []
        for request_id, sequence in self.sequences.items():
            if sequence.running:
                outputs.append(sequence.output(sequence.num_tokens))
                sequence.num_tokens += 1
                if outputs[-1].finish is not None:
                    sequence.running = False
                    ended.append(request_id)
        if outputs and self.attached:
            self.frames.append(StepOutput(tuple(outputs)))
        while self.orders:
            request_id, work = self.orders.popleft()
            self.sequences.pop(request_id, None)
            if work is not None:
                assert isinstance(work.work, Work) and len(work.work.emitted) == work.num_emitted
                assert list(work.work.emitted) == tokens_of(work.work.request)[: work.num_emitted]
                self.sequences[request_id] = Sequence(work.work.request, work.num_emitted)
        return ended

    def replay(self, request_id: str, digest: bytes, next_index: int) -> None:
        """Send tokens again; the worker ignores requests that it does not run."""
        sequence = self.sequences.get(request_id)
        if (
            self.attached
            and sequence is not None
            and sequence.asked.digest == digest
            and next_index < sequence.num_tokens
        ):
            tokens = range(next_index, sequence.num_tokens)
            self.frames.append(StepOutput(tuple(sequence.output(index) for index in tokens)))
