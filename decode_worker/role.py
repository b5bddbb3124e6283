"""The decode role: continuous batching of sequences from handoffs, and of whole requests.

    Reserve ─► inbound ──notice──► running ──► finished
    Prefill (whole) ─► waiting ──pages──► prefilling ──► running ──SendPages──► sending ──► at another worker
                          ▲                                 │
                          ├── preempted: pages swapped out ─┤
                          └── no host memory: recomputed ───┘

When its router is gone, all but reservations and migrations continue, and their tokens still reach their gateways.

A worker that runs only whole requests is the co-located baseline ("mixed"): prefill chunks beside decodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.decode_worker.handoff_receiver import HandoffReceiver
from baton.decode_worker.swap import SwapSpace
from baton.engine.batch import absorb_step, plan_step
from baton.engine.page_table import commit_pages, give_back_pages, grow, take_pages
from baton.engine.sequence import Sequence
from baton.engine.step import StepPlan, StepResult
from baton.protocol.errors import InvalidRequest
from baton.protocol.handoff import HandoffNotice
from baton.protocol.messages import (
    AdoptSequence,
    Cancel,
    HandoffCommitted,
    HandoffCorrupt,
    Prefill,
    Release,
    RequestFailed,
    ReservationRefused,
    Reserve,
    Reserved,
    RouterMessage,
    SendPages,
)
from baton.protocol.worker import RoleName
from baton.worker.core.chunk_times import first_token, note_chunks
from baton.worker.core.handoff_source import HandoffSource
from baton.worker.core.role import Command, Occupancy, Send, WriteEnded
from baton.worker.core.state import WorkerState
from baton.worker.core.work import accepted_work, not_held


@dataclass(eq=False)
class DecodeRole:
    """Owns the pages of its reservations and of every sequence it runs."""

    state: WorkerState
    name: RoleName = RoleName.DECODE
    _running: dict[str, Sequence] = field(default_factory=dict)  # has pages; oldest first
    _waiting: dict[str, Sequence] = field(default_factory=dict)  # has none yet, or lost them by preemption
    _receiver: HandoffReceiver = field(init=False)
    _source: HandoffSource = field(init=False)
    _swap: SwapSpace = field(init=False)
    _recomputes: int = 0
    decode_steps: int = 0  # that have decoded at least one sequence
    _unstarted: set[str] = field(default_factory=set)  # prefilled here, and no token was sampled yet
    _stepping: bool = False  # a plan is not absorbed yet: its sequences may not pause

    def __post_init__(self) -> None:
        self._swap = SwapSpace(self.state.host_pages, self.state.pool.page_size)
        self._meet_peers()

    def _meet_peers(self) -> None:
        self._receiver = HandoffReceiver(
            self.state.pool, self.state.agent, self.state.model_id, self.state.share_prefixes
        )
        self._source = HandoffSource(self.state.pool, self.state.engine.checksum_every, migrates=True)

    def on_message(self, message: RouterMessage, now: float) -> list[Command]:
        match message:
            case Prefill():
                return self._accept(message)
            case Reserve():
                return [Send(self._reserve(message))]
            case SendPages():
                return self._send_pages(message, now)
            case Cancel(request_id):
                self._receiver.cancel(request_id)
                return self._forget(request_id, now)
            case AdoptSequence():
                return self._adopt(message)
            case Release(reservation_id):
                self._receiver.release(reservation_id)
        return []

    def _accept(self, message: Prefill) -> list[Command]:
        request_id = message.request_id
        if message.role_epoch != self.state.role_epoch or message.disaggregated:
            return [Send(RequestFailed(request_id, "WrongRole", "This worker hands nothing over."))]
        if request_id in self._running:
            return []
        try:
            work = accepted_work(message, self.state)
        except InvalidRequest as error:
            return [Send(RequestFailed(request_id, "InvalidRequest", error.message))]
        self._swap.forget(request_id)
        sequence = self._waiting[request_id] = Sequence.start(work.request, work.emitted)
        self._unstarted.add(request_id)
        self.state.streams.start(sequence, message.gateway)
        return []

    def _adopt(self, message: AdoptSequence) -> list[Command]:
        """Another gateway gets the tokens of a sequence that is here or on its way here."""
        inbound = self._receiver.adopt(message.request_id, message.gateway)
        commands = self.state.streams.adopt(message.request_id, message.gateway, message.from_index)
        if commands is None:
            return [] if inbound else [not_held(message.request_id)]
        return commands

    def _reserve(self, message: Reserve) -> Reserved | ReservationRefused:
        def refused(reason: str) -> ReservationRefused:
            return ReservationRefused(message.reservation_id, message.request_id, reason)

        if message.role_epoch != self.state.role_epoch:
            return refused("The worker has changed its role.")
        try:
            work = accepted_work(message, self.state)
        except InvalidRequest as error:
            return refused(error.message)
        sequence = Sequence.start(work.request, work.emitted)
        # Swapped-out sequences come back before newcomers, which could starve them.
        headroom = self._headroom + self._swap.num_in_use
        reservation = self._receiver.reserve(message, sequence, headroom)
        return Reserved(reservation) if reservation is not None else refused("Too few free pages.")

    @property
    def _headroom(self) -> int:
        """Pages kept for growth: every running sequence may soon need its next one."""
        return min(len(self._running) + len(self._receiver), self.state.pool.num_pages // 4)

    def on_notice(self, notice: HandoffNotice, now: float) -> list[Command]:
        committed = self._receiver.commit(notice)
        if committed is None:
            return []
        sequence, gateway = committed
        if sequence.request_id in self._running or sequence.request_id in self._waiting:
            give_back_pages(sequence, self.state.pool)  # no router sends a sequence to where it is
            return []
        commit_pages(sequence, self.state.pool, self.state.root)
        self.state.streams.start(sequence, gateway)
        self._running[sequence.request_id] = sequence
        return [Send(HandoffCommitted(notice.request_id, notice.reservation_id))]

    def reserved_pages(self, reservation_id: str) -> tuple[int, ...]:
        return self._receiver.pages(reservation_id)

    def on_corrupt(self, notice: HandoffNotice, wrong_pages: int) -> list[Command]:
        self._receiver.cancel(notice.request_id)
        return [Send(HandoffCorrupt(notice.request_id, notice.reservation_id, wrong_pages))]

    def _send_pages(self, message: SendPages, now: float) -> list[Command]:
        """Start to migrate a decoding sequence to the reservation's worker."""
        sequence = self._running.get(message.request_id)
        commands = self._source.start(message, sequence if sequence and sequence.page_table else None)
        return commands + self._push(now)

    def _push(self, now: float) -> list[Command]:
        return [] if self._stepping else self._source.push(now)

    def on_write_ended(self, outcome: WriteEnded, now: float) -> list[Command]:
        commands, gone = self._source.on_write_ended(outcome, now)
        if gone is not None:
            commands += self._forget(gone.request_id, now)
        return commands + self._push(now)

    def call_off_handoffs(self) -> None:
        self._source.call_off()

    def on_new_router(self, state: WorkerState) -> None:
        self._receiver.release_all()
        self.state = state
        self._meet_peers()

    def on_stalled(self, agent: str, now: float) -> list[Command]:
        return self._source.on_stalled(agent, now)

    def plan(self, now: float) -> tuple[list[Command], StepPlan | None]:
        self.state.streams.expire(now)
        copies = self._admit()
        paused = self._source.paused
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for request_id, sequence in self._running.items():
            if not sequence.decoding:
                prefilling.append(sequence)
            elif not paused(request_id):
                decoding.append(sequence)
        ready = [sequence for sequence in decoding[: self.state.budget.max_batch] if self._find_page(sequence, copies)]
        ready = [sequence for sequence in ready if sequence.page_table]  # a later one may have preempted it
        prefilling = [sequence for sequence in prefilling if sequence.request_id in self._running]  # as well
        plan = plan_step(ready, prefilling, self.state.budget)
        self._stepping = plan is not None
        return copies, plan

    def _admit(self) -> list[Command]:
        """Admit waiting sequences, preempted ones first; returns the copies that restore their pages."""
        copies: list[Command] = []
        for request_id, sequence in list(self._waiting.items()):
            headroom = self._headroom if self._running else 0
            if not take_pages(sequence, self.state.pool, self.state.root(sequence), reserve=headroom):
                break  # first come, first served
            del self._waiting[request_id]
            self._running[request_id] = sequence
            swap_in = self._swap.swap_in(sequence)
            if swap_in is not None:
                copies.append(swap_in)
        return copies

    def _find_page(self, sequence: Sequence, copies: list[Command]) -> bool:
        """Find a page for the sequence's next token, if necessary by preempting the sequence that came last; `copies`
        collects the copies that keep that one's pages."""
        if not sequence.page_table:
            return False
        while not grow(sequence, self.state.pool):
            sending = self._source.sending
            staying = (one for request_id, one in reversed(self._running.items()) if not sending(request_id))
            victim = next(staying, None)
            if victim is None:
                return False  # all are migrating: pages are free when they are gone
            copies += self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> list[Command]:
        """Free its pages. They are restored from host memory or recomputed; committed ones are likely still
        cached then."""
        del self._running[sequence.request_id]
        swap_out = self._swap.swap_out(sequence)
        self._recomputes += swap_out is None
        give_back_pages(sequence, self.state.pool)
        self._waiting = {sequence.request_id: sequence, **self._waiting}
        return [swap_out] if swap_out is not None else []

    def absorb(self, plan: StepPlan, result: StepResult, now: float) -> list[Command]:
        self._stepping = False
        sampled = absorb_step(plan, result)
        note_chunks(plan, now)
        for part in plan.slices:
            commit_pages(part.sequence, self.state.pool, self.state.root)
        self.decode_steps += plan.num_decodes > 0
        streams, eos_token_ids, context_tokens = self.state.streams, self.state.eos_token_ids, self.state.context_tokens
        for logprobs in result.prompt_logprobs:
            streams.on_prompt_logprobs(logprobs)
        commands: list[Command] = []
        for sequence, token in sampled:
            finish = sequence.finish_reason(eos_token_ids, context_tokens)
            streams.on_token(sequence, token, finish)
            if self._unstarted and sequence.request_id in self._unstarted:
                self._unstarted.remove(sequence.request_id)
                commands.append(Send(first_token(sequence, now)))
            if finish is not None:
                ended = streams.end(sequence.request_id, finish, now)
                commands += [*self._release(sequence.request_id, now), Send(ended)]
        return [*streams.take(), *commands, *self._source.push(now)]

    def _forget(self, request_id: str, now: float) -> list[Command]:
        """The request is cancelled, or continues elsewhere."""
        self.state.streams.forget(request_id)
        return self._release(request_id, now)

    def _release(self, request_id: str, now: float) -> list[Command]:
        """The request needs its pages no more."""
        self._waiting.pop(request_id, None)
        self._unstarted.discard(request_id)
        self._swap.forget(request_id)
        sequence = self._running.pop(request_id, None)
        if sequence is None:
            return []
        commands = self._source.release(request_id, now)
        give_back_pages(sequence, self.state.pool)
        return commands

    @property
    def expects_notices(self) -> bool:
        return len(self._receiver) > 0

    def occupancy(self) -> Occupancy:
        prefilling = [sequence for sequence in self._running.values() if not sequence.decoding]
        uncomputed = [*prefilling, *self._waiting.values()]
        return Occupancy(
            running=len(self._running) - len(prefilling),
            waiting=len(uncomputed),
            pending_prefill_tokens=sum(sequence.uncomputed for sequence in uncomputed) - self._swap.computed_tokens,
            context_tokens=sum(sequence.computed for sequence in self._running.values()),
            request_ids=tuple(dict.fromkeys((*self._running, *self._waiting, *self._source.detached_ids))),
            reservation_ids=self._receiver.reservation_ids,
            swapped=len(self._swap),
            swap_outs=self._swap.swap_outs,
            recomputes=self._recomputes,
            decode_steps=self.decode_steps,
        )
