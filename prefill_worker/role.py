"""The prefill role: prompts in, KV pages and first tokens out.

Each request goes waiting → prefilling → holding (prompt computed, pages kept until they are delivered) → gone. Pages
that are already computed are pushed as soon as a reservation is known, so a transfer overlaps the next chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.engine.batch import absorb_step, plan_step
from baton.engine.page_table import commit_pages, give_back_pages, take_pages
from baton.engine.sequence import Sequence
from baton.engine.step import StepPlan, StepResult
from baton.protocol.messages import (
    AdoptSequence,
    Cancel,
    DetachedSequence,
    Prefill,
    RequestFailed,
    RouterMessage,
    SendPages,
    StepOutput,
)
from baton.protocol.worker import RoleName
from baton.worker.core.handoff_source import HandoffSource
from baton.worker.core.role import Command, Occupancy, Send, WriteEnded
from baton.worker.core.state import WorkerState
from baton.worker.core.token_output import token_output


@dataclass(slots=True, eq=False)
class _Job:
    sequence: Sequence
    computed_s: float | None = None  # when the first token was sampled


@dataclass(eq=False)
class PrefillRole:
    """Owns the pages of its requests until they are delivered or cancelled, or the request ends here."""

    state: WorkerState
    name: RoleName = RoleName.PREFILL
    _jobs: dict[str, _Job] = field(default_factory=dict)  # in order of arrival
    _source: HandoffSource = field(init=False)

    def __post_init__(self) -> None:
        self._source = HandoffSource(self.state.pool, self.state.engine.checksum_every, migrates=False)

    def on_message(self, message: RouterMessage, now: float) -> list[Command]:
        match message:
            case Prefill():
                return self._accept(message)
            case SendPages():
                return self._send_pages(message, now)
            case Cancel(request_id):
                return self._forget(request_id, now)
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
        sequence, computed_s = (job.sequence, job.computed_s) if job is not None else (None, None)
        return self._source.start(message, sequence, computed_s) + self._source.push(now)

    def plan(self, now: float) -> tuple[list[Command], StepPlan | None]:
        prefilling = []
        for job in self._jobs.values():
            sequence = job.sequence
            if job.computed_s is not None:
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
            request_id = sequence.request_id
            finish = sequence.finish_reason(self.state.eos_token_ids, self.state.context_tokens)
            outputs.append(token_output(sequence, token, finish))
            if finish is not None:
                commands += self._forget(request_id, now)
            elif request_id in self._jobs:
                self._jobs[request_id].computed_s = now
                self._source.on_computed(request_id, now)
        commands += self._source.push(now)
        return [Send(StepOutput(tuple(outputs))), *commands] if outputs else commands

    def on_write_ended(self, outcome: WriteEnded, now: float) -> list[Command]:
        commands, gone = self._source.on_write_ended(outcome, now)
        if gone is not None:
            commands += self._forget(gone.request_id, now)
        return commands + self._source.push(now)

    def on_stalled(self, agent: str, now: float) -> list[Command]:
        return self._source.on_stalled(agent, now)

    def call_off_handoffs(self) -> None:
        self._source.call_off()

    def on_new_router(self, state: WorkerState) -> tuple[DetachedSequence, ...]:
        for job in self._jobs.values():
            give_back_pages(job.sequence, self.state.pool)
        self._jobs.clear()
        self.state = state
        self.__post_init__()
        return ()

    def _forget(self, request_id: str, now: float) -> list[Command]:
        """The request is done here; pages that writes read are released when they have ended."""
        job = self._jobs.pop(request_id, None)
        if job is None:
            return []
        commands = self._source.release(request_id, now)
        give_back_pages(job.sequence, self.state.pool)
        return commands

    def occupancy(self) -> Occupancy:
        waiting = [job.sequence for job in self._jobs.values() if job.computed_s is None]
        return Occupancy(
            running=0,
            waiting=len(waiting),
            pending_prefill_tokens=sum(sequence.uncomputed for sequence in waiting),
            context_tokens=0,
            request_ids=tuple(dict.fromkeys((*self._jobs, *self._source.detached_ids))),
            reservation_ids=(),
        )
