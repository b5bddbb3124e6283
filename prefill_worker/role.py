"""The prefill role: prompts in, KV pages and first tokens out.

Each request goes waiting → prefilling → holding (prompt computed, pages kept until they are delivered) → gone. Pages
that are already computed are pushed as soon as a reservation is known, so a transfer overlaps the next chunk.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from baton.engine.batch import absorb_step, plan_step
from baton.engine.page_table import commit_pages, give_back_pages, take_pages
from baton.engine.sequence import Sequence
from baton.engine.step import StepPlan, StepResult
from baton.protocol.handoff import HandoffNotice, HandoffOutcome
from baton.protocol.messages import (
    AdoptSequence,
    Cancel,
    DetachedSequence,
    HandoffEnded,
    Prefill,
    RequestFailed,
    RouterMessage,
    SendPages,
    StepOutput,
)
from baton.protocol.worker import RoleName
from baton.worker.core.handoff_sender import HandoffSender
from baton.worker.core.role import Command, Occupancy, Send, WriteEnded
from baton.worker.core.stalled_handoffs import StalledHandoffs
from baton.worker.core.state import WorkerState
from baton.worker.core.token_output import token_output


@dataclass(slots=True, eq=False)
class _Job:
    sequence: Sequence
    sender: HandoffSender | None = None
    compute_ended_s: float | None = None  # when the first token was sampled
    unwanted: bool = False  # cancelled, or ended with its first token: kept only until its writes end

    @property
    def computed_all(self) -> bool:
        return self.compute_ended_s is not None


@dataclass(eq=False)
class PrefillRole:
    """Owns the pages of its requests until they are delivered or cancelled, or the request ends here."""

    state: WorkerState
    name: RoleName = RoleName.PREFILL
    _jobs: dict[str, _Job] = field(default_factory=dict)  # in order of arrival
    _write_ids: itertools.count[int] = field(default_factory=itertools.count)
    _job_of_write: dict[int, _Job] = field(default_factory=dict)
    _stalled: StalledHandoffs = field(init=False)

    def __post_init__(self) -> None:
        self._stalled = StalledHandoffs(self.state.pool)

    def on_message(self, message: RouterMessage, now: float) -> list[Command]:
        match message:
            case Prefill():
                return self._accept(message)
            case SendPages():
                return self._send_pages(message, now)
            case Cancel(request_id):
                job = self._jobs.get(request_id)
                return self._drop(job, now) if job else []
            case AdoptSequence(request_id):
                return [Send(RequestFailed(request_id, "NotFound", "This worker keeps no sequences."))]
        return []

    def _accept(self, message: Prefill) -> list[Command]:
        request = message.request
        if message.role_epoch != self.state.role_epoch or not message.disaggregated:
            return [Send(RequestFailed(request.request_id, "WrongRole", "This worker only prefills."))]
        if request.request_id not in self._jobs:
            self._jobs[request.request_id] = _Job(Sequence.start(request, message.emitted))
        return []

    def _send_pages(self, message: SendPages, now: float) -> list[Command]:
        job = self._jobs.get(message.request_id)
        reservation = message.reservation
        if job is not None and job.sender is not None and job.sender.reservation == reservation:
            return []  # a repeat: the end of the handoff answers both
        if job is None or job.unwanted or job.sender is not None:
            ended = HandoffEnded(message.request_id, reservation.reservation_id, HandoffOutcome.DRAINED)
            return [Send(ended)]
        job.sender = HandoffSender.to(reservation)
        return self._push(job, now)

    def plan(self, now: float) -> tuple[list[Command], StepPlan | None]:
        prefilling = []
        for job in self._jobs.values():
            sequence = job.sequence
            if job.unwanted or job.computed_all:
                continue
            if not sequence.page_table and not take_pages(sequence, self.state.pool, self.state.root(sequence)):
                break  # first come, first served: smaller ones behind must not starve it
            prefilling.append(sequence)
        return [], plan_step([], prefilling, self.state.budget)

    def absorb(self, plan: StepPlan, result: StepResult, now: float) -> list[Command]:
        sampled = absorb_step(plan, result)
        for part in plan.slices:
            commit_pages(part.sequence, self.state.pool, self.state.root)
        outputs = []
        commands: list[Command] = []
        for sequence, token in sampled:
            job = self._jobs[sequence.request_id]
            job.compute_ended_s = now
            finish = sequence.finish_reason(self.state.eos_token_ids, self.state.context_tokens)
            outputs.append(token_output(sequence, token, finish))
            if finish is not None:
                commands += self._drop(job, now)
        for part in plan.slices:
            job_or_none = self._jobs.get(part.sequence.request_id)
            if job_or_none is not None:
                commands += self._push(job_or_none, now)
        return [Send(StepOutput(tuple(outputs))), *commands] if outputs else commands

    def on_write_ended(self, outcome: WriteEnded, now: float) -> list[Command]:
        of_stalled = self._stalled.on_write_ended(outcome, now)
        if of_stalled is not None:
            return of_stalled
        job = self._job_of_write.pop(outcome.write_id)
        if job.sender is None:
            return []
        job.sender.on_write_ended(outcome)
        return self._push(job, now) + self._settle(job, now)

    def on_stalled(self, agent: str, now: float) -> list[Command]:
        commands: list[Command] = []
        for job in list(self._jobs.values()):
            sender = job.sender
            if sender is None or sender.reservation.agent != agent:
                continue
            if not sender.in_flight:
                sender.error = f"{agent} takes no pages"
                commands += self._settle(job, now)
                continue
            job.sender = None
            for write_id in sender.in_flight:
                del self._job_of_write[write_id]
            commands.append(self._stalled.hold(job.sequence, sender, now))
            if job.unwanted:
                self._forget(job)
        return commands

    def on_notice(self, notice: HandoffNotice, now: float) -> list[Command]:
        return []

    def reserved_pages(self, reservation_id: str) -> tuple[int, ...]:
        return ()

    def on_corrupt(self, notice: HandoffNotice, wrong_pages: int) -> list[Command]:
        return []

    def call_off_handoffs(self) -> None:
        for job in self._jobs.values():
            if job.sender is not None:
                job.sender.cancelled = True

    def on_new_router(self, state: WorkerState) -> tuple[DetachedSequence, ...]:
        for job in list(self._jobs.values()):
            self._forget(job)
        self.state = state
        return ()

    def _push(self, job: _Job, now: float) -> list[Command]:
        """Send pages that are computed but not sent. A running chunk never changes full pages."""
        if job.sender is None or job.unwanted:
            return []
        page_size, every = self.state.pool.page_size, self.state.engine.checksum_every
        write = job.sender.push(job.sequence, page_size, job.computed_all, self._write_ids, every)
        if write is None:
            return self._settle(job, now)
        self._job_of_write[write.write_id] = job
        return [write]

    def _drop(self, job: _Job, now: float) -> list[Command]:
        """The request is done here; its pages are freed once no write reads them."""
        job.unwanted = True
        if job.sender is None:
            self._forget(job)
            return []
        job.sender.cancelled = True
        return self._settle(job, now)

    def _settle(self, job: _Job, now: float) -> list[Command]:
        """Report an ended handoff, once, and free its pages."""
        sender = job.sender
        if sender is None or sender.outcome is None:
            return []
        outcome, reservation = sender.outcome, sender.reservation
        delivered = outcome is HandoffOutcome.DELIVERED
        job.sender = None
        if delivered or job.unwanted:
            self._forget(job)
        report = sender.report(job.compute_ended_s, now)
        return [Send(HandoffEnded(job.sequence.request_id, reservation.reservation_id, outcome, report, sender.error))]

    def _forget(self, job: _Job) -> None:
        del self._jobs[job.sequence.request_id]
        give_back_pages(job.sequence, self.state.pool)

    @property
    def expects_peers(self) -> bool:
        return bool(self._job_of_write) or len(self._stalled) > 0

    def occupancy(self) -> Occupancy:
        waiting = [job.sequence for job in self._jobs.values() if not job.computed_all and not job.unwanted]
        return Occupancy(
            running=0,
            waiting=len(waiting),
            pending_prefill_tokens=sum(sequence.uncomputed for sequence in waiting),
            context_tokens=0,
            request_ids=tuple(dict.fromkeys((*self._jobs, *self._stalled.request_ids))),
            reservation_ids=(),
        )
