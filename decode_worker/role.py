"""The decode role: continuous batching of sequences whose KV was handed over, and of whole requests.

    Reserve ─► inbound ──notice──► running ──► finished
    Prefill (whole) ─► waiting ──pages──► prefilling ──► running
                          ▲                                 │
                          └────── preempted: recompute ─────┘

A worker that is only ever given whole requests is the co-located baseline ("mixed"): prefill chunks beside decodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.handoff import HandoffNotice
from cluster.messages import (
    Cancel,
    HandoffCommitted,
    Prefill,
    Release,
    RequestFailed,
    ReservationRefused,
    Reserve,
    Reserved,
    RouterMessage,
    StepOutput,
)
from cluster.request import FinishReason
from cluster.worker import RoleName
from decode_worker.inbound import Inbound
from engine.batch import absorb_step, plan_step
from engine.page_table import commit_pages, give_back_pages, grow, take_pages
from engine.sequence import Sequence
from engine.step import SampledToken, StepPlan, StepResult
from worker.role import Command, Occupancy, Send, WriteEnded
from worker.state import WorkerState
from worker.token_output import token_output


@dataclass(eq=False)
class DecodeRole:
    """Owns the pages of its reservations and of every sequence it runs."""

    state: WorkerState
    name: RoleName = RoleName.DECODE
    _running: dict[str, Sequence] = field(default_factory=dict)  # has pages; oldest first
    _waiting: dict[str, Sequence] = field(default_factory=dict)  # has none yet, or had to give them back
    _inbound: Inbound = field(init=False)

    def __post_init__(self) -> None:
        self._inbound = Inbound(self.state.pool, self.state.agent, self.state.model_id)

    def on_message(self, message: RouterMessage, now: float) -> list[Command]:
        match message:
            case Prefill():
                return self._accept(message)
            case Reserve():
                return [Send(self._reserve(message))]
            case Cancel(request_id):
                self._inbound.cancel(request_id)
                self._forget(request_id)
            case Release(reservation_id):
                self._inbound.release(reservation_id)
        return []

    def _accept(self, message: Prefill) -> list[Command]:
        request_id = message.request.request_id
        if message.role_epoch != self.state.role_epoch or message.hand_off:
            return [Send(RequestFailed(request_id, "WrongRole", "This worker hands nothing over."))]
        if request_id not in self._running:
            self._waiting[request_id] = Sequence.start(message.request, message.emitted)
        return []

    def _reserve(self, message: Reserve) -> Reserved | ReservationRefused:
        request_id = message.request.request_id
        if message.role_epoch != self.state.role_epoch:
            return ReservationRefused(message.reservation_id, request_id, "The worker has changed its role.")
        sequence = Sequence.start(message.request, message.emitted)
        reservation = self._inbound.reserve(message.reservation_id, sequence, self._headroom)
        if reservation is None:
            return ReservationRefused(message.reservation_id, request_id, "No room for its pages.")
        return Reserved(reservation)

    @property
    def _headroom(self) -> int:
        """Pages kept for growth: every running sequence may soon need its next one."""
        return min(len(self._running) + len(self._inbound), self.state.pool.num_pages // 4)

    def on_notice(self, notice: HandoffNotice, now: float) -> list[Command]:
        sequence = self._inbound.commit(notice)
        if sequence is None:
            return []
        commit_pages(sequence, self.state.pool, self.state.root(sequence))
        self._running[sequence.request_id] = sequence
        return [Send(HandoffCommitted(notice.request_id, notice.reservation_id))]

    def on_write_ended(self, outcome: WriteEnded, now: float) -> list[Command]:
        return []

    def plan(self, now: float) -> StepPlan | None:
        self._admit()
        decoding = [sequence for sequence in self._running.values() if sequence.decoding][: self.state.budget.max_batch]
        ready = [sequence for sequence in decoding if self._make_room(sequence)]
        ready = [sequence for sequence in ready if sequence.page_table]  # a later one may have preempted it
        prefilling = [sequence for sequence in self._running.values() if not sequence.decoding]
        return plan_step(ready, prefilling, self.state.budget)

    def _admit(self) -> None:
        for request_id, sequence in list(self._waiting.items()):
            headroom = self._headroom if self._running else 0
            if not take_pages(sequence, self.state.pool, self.state.root(sequence), reserve=headroom):
                return  # first come, first served
            del self._waiting[request_id]
            self._running[request_id] = sequence

    def _make_room(self, sequence: Sequence) -> bool:
        """A page for the sequence's next token, taken if need be from the sequence that came last."""
        if not sequence.page_table:
            return False
        while not grow(sequence, self.state.pool):
            victim = next(reversed(self._running.values()))
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Give its pages back and recompute it later; what it had committed is likely still cached then."""
        del self._running[sequence.request_id]
        give_back_pages(sequence, self.state.pool)
        self._waiting = {sequence.request_id: sequence, **self._waiting}

    def absorb(self, plan: StepPlan, result: StepResult, now: float) -> list[Command]:
        sampled = absorb_step(plan, result)
        for part in plan.slices:
            commit_pages(part.sequence, self.state.pool, self.state.root(part.sequence))
        outputs = tuple(token_output(sequence, token, self._ended(sequence, token)) for sequence, token in sampled)
        return [Send(StepOutput(outputs))] if outputs else []

    def _ended(self, sequence: Sequence, token: SampledToken) -> FinishReason | None:
        finish = sequence.finish_reason(self.state.eos_token_ids, self.state.context_tokens)
        if finish is not None:
            self._forget(sequence.request_id)
        return finish

    def _forget(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)
        sequence = self._running.pop(request_id, None)
        if sequence is not None:
            give_back_pages(sequence, self.state.pool)

    @property
    def expects_peers(self) -> bool:
        return len(self._inbound) > 0

    def occupancy(self) -> Occupancy:
        prefilling = [sequence for sequence in self._running.values() if not sequence.decoding]
        uncomputed = [*prefilling, *self._waiting.values()]
        return Occupancy(
            running=len(self._running) - len(prefilling),
            waiting=len(uncomputed),
            uncomputed_tokens=sum(sequence.uncomputed for sequence in uncomputed),
            context_tokens=sum(sequence.computed for sequence in self._running.values()),
            request_ids=(*self._running, *self._waiting),
            reservation_ids=self._inbound.reservation_ids,
        )
