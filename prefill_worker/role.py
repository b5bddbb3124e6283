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
from baton.protocol.errors import InvalidRequest
from baton.protocol.messages import (
    AdoptSequence,
    Cancel,
    Prefill,
    RequestFailed,
    RouterMessage,
    SendPages,
)
from baton.protocol.worker import RoleName
from baton.worker.core.chunk_times import first_token, note_chunks
from baton.worker.core.handoff_source import HandoffSource
from baton.worker.core.role import Command, Occupancy, Send, WriteEnded
from baton.worker.core.state import WorkerState
from baton.worker.core.work import accepted_work, not_held


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
            case AdoptSequence(request_id, gateway, from_index):
                commands = self.state.streams.adopt(request_id, gateway, from_index)
                return [not_held(request_id)] if commands is None else commands
        return []

    def _accept(self, message: Prefill) -> list[Command]:
        request_id = message.request_id
        if message.role_epoch != self.state.role_epoch or not message.disaggregated:
            return [Send(RequestFailed(request_id, "WrongRole", "This worker only prefills."))]
        if request_id in self._jobs:
            return []
        try:
            work = accepted_work(message, self.state)
        except InvalidRequest as error:
            return [Send(RequestFailed(request_id, "InvalidRequest", error.message))]
        sequence = Sequence.start(work.request, work.emitted)
        self._jobs[request_id] = _Job(sequence)
        self.state.streams.start(sequence, message.gateway)
        return []

    def _send_pages(self, message: SendPages, now: float) -> list[Command]:
        job = self._jobs.get(message.request_id)
        sequence, computed_s = (job.sequence, job.computed_s) if job is not None else (None, None)
        return self._source.start(message, sequence, computed_s) + self._source.push(now)

    def plan(self, now: float) -> tuple[list[Command], StepPlan | None]:
        self.state.streams.expire(now)
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
        note_chunks(plan, now)
        for part in plan.slices:
            commit_pages(part.sequence, self.state.pool, self.state.root)
        streams = self.state.streams
        for logprobs in result.prompt_logprobs:
            streams.on_prompt_logprobs(logprobs)
        commands: list[Command] = []
        for sequence, token in sampled:
            request_id = sequence.request_id
            finish = sequence.finish_reason(self.state.eos_token_ids, self.state.context_tokens)
            streams.on_token(sequence, token, finish)
            commands.append(Send(first_token(sequence, now)))
            if finish is not None:
                ended = streams.end(request_id, finish, now)
                commands += [*self._release(request_id, now), Send(ended)]
            else:
                self._jobs[request_id].computed_s = now
                self._source.on_computed(request_id, now)
        return [*streams.take(), *commands, *self._source.push(now)]

    def on_write_ended(self, outcome: WriteEnded, now: float) -> list[Command]:
        commands, gone = self._source.on_write_ended(outcome, now)
        if gone is not None:
            commands += self._forget(gone.request_id, now)
        return commands + self._source.push(now)

    def on_stalled(self, agent: str, now: float) -> list[Command]:
        return self._source.on_stalled(agent, now)

    def call_off_handoffs(self) -> None:
        self._source.call_off()

    def on_new_router(self, state: WorkerState) -> None:
        for request_id, job in self._jobs.items():
            give_back_pages(job.sequence, self.state.pool)
            self.state.streams.forget(request_id)
        self._jobs.clear()
        self.state = state
        self.__post_init__()

    def _forget(self, request_id: str, now: float) -> list[Command]:
        """The request is cancelled, or continues elsewhere."""
        self.state.streams.forget(request_id)
        return self._release(request_id, now)

    def _release(self, request_id: str, now: float) -> list[Command]:
        """The request needs its pages no more; pages that writes read are released when they have ended."""
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
