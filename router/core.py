"""The router's decisions: what it believes of the cluster, which request goes where, what each client sees.

Pure: every method takes what happened and the time, and returns commands for the shell (router/driver.py) to perform.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from cluster.errors import BatonError, DeadlineExceeded, InvalidRequest, error_from_name
from cluster.messages import (
    Cancel,
    Goodbye,
    HandoffEnded,
    LoadReport,
    PagesChanged,
    PeerJoined,
    PeerLeft,
    Prefill,
    Register,
    Release,
    RequestFailed,
    ReservationRefused,
    Reserve,
    Reserved,
    ResyncPages,
    SendPages,
    StepOutput,
    TokenOutput,
    Welcome,
    WorkerMessage,
)
from cluster.request import FinishReason, Request
from cluster.routing import RoutingDecision
from router import lifecycle
from router.commands import Close, Command, Moved, Show, Tell
from router.detokenizer import Decode
from router.dispatch import Dispatch, FoundDecode
from router.explanation import Explanations
from router.limits import RouterLimits, check_capacity
from router.operation import Ask, Operation
from router.operations import Operations
from router.policy.admission import refuse_full
from router.policy.cluster_state import ClusterState, RunningSequence
from router.policy.output_length import OutputLength
from router.policy.placement import Place, Placement, Refuse
from router.record import Record, open_record
from router.stream import OutputStream, TextToken

_request_id = attrgetter("request_id")


@dataclass(eq=False)
class RouterCore:
    """Events in, commands out; the same events at the same times give the same commands."""

    router_id: str
    placement: Placement
    decode: Decode | None  # token ids to text; None where nobody reads it
    limits: RouterLimits = field(default_factory=RouterLimits)
    state: ClusterState = field(default_factory=ClusterState)
    output_length: OutputLength = field(default_factory=OutputLength)
    explanations: Explanations = field(default_factory=Explanations)
    dispatch: Dispatch = field(init=False)
    operations: Operations = field(init=False)
    auto: bool = False
    finished_requests: int = 0
    failed_requests: int = 0
    refused_requests: int = 0
    _records: dict[str, Record] = field(default_factory=dict)
    _events: deque[tuple[str, lifecycle.Event]] = field(default_factory=deque)
    _commands: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dispatch = Dispatch(self.placement, self.state)
        self.operations = Operations(self.state)

    def start_operation(
        self, operation_id: str, ask: Ask, dry_run: bool, now: float
    ) -> tuple[Operation, list[Command]]:
        operation = self.operations.start(operation_id, ask, dry_run, now)
        return operation, [Moved(operation)]

    def cancel_operation(self, operation_id: str, now: float) -> tuple[Operation, list[Command]]:
        operation = self.operations.cancel(operation_id, now)
        return operation, [Moved(operation)]

    @property
    def queued(self) -> int:
        return self.dispatch.queued

    @property
    def live(self) -> int:
        return len(self._records)

    def submit(self, request: Request, now: float) -> list[Command]:
        """Take on a request; raises (and changes nothing) when it cannot be served."""
        if request.request_id in self._records:
            raise InvalidRequest(f"Request id {request.request_id!r} is in use by a live request; choose another.")
        check_capacity(request, self.state)
        if self.queued >= self.limits.max_queued:
            raise refuse_full(self.queued, now - self.dispatch.oldest_s)
        record = open_record(request, OutputStream(request, self.decode), self.state, self.output_length, now)
        self.dispatch.fairness.on_queued(request.tenant, [other.request.tenant for other in self._records.values()])
        self._records[request.request_id] = record
        self._perform(record, next(record.life))
        return self._settle(now)

    def stop(self, request_id: str, error: BatonError, now: float) -> list[Command]:
        """Nobody wants the request any more (the client left, its deadline passed)."""
        self._events.append((request_id, lifecycle.Stopped(None, error)))
        return self._settle(now)

    def tick(self, now: float) -> list[Command]:
        """Deadlines, and workers that fell silent. Call it a few times a second."""
        for request_id, record in self._records.items():
            deadline = record.request.deadline_s
            if deadline is not None and now >= deadline and not record.closed:
                error = DeadlineExceeded("The deadline passed before the answer was complete.")
                self._events.append((request_id, lifecycle.Stopped(None, error)))
        silent = [view.name for view in self.state.workers.values() if now - view.heard_s > self.limits.lost_after_s]
        for name in sorted(silent):
            self._lose(name)
        self._commands += [Moved(operation) for operation in self.operations.tick(now)]
        self.state.prefix_index.sweep()
        self.dispatch.moved = True
        return self._settle(now)

    def on_worker_lost(self, worker: str, now: float) -> list[Command]:
        """A worker is known to be gone."""
        self._lose(worker)
        return self._settle(now)

    def on_message(self, worker: str, message: WorkerMessage, now: float) -> list[Command]:
        """What a registered worker says; anything but `Register` from an unknown one is ignored."""
        if isinstance(message, Register):
            self._register(message, now)
        elif worker in self.state.workers:
            self.state.workers[worker].heard_s = now
            self._on_worker_message(worker, message, now)
        return self._settle(now)

    def _on_worker_message(self, worker: str, message: WorkerMessage, now: float) -> None:
        match message:
            case StepOutput(tokens):
                for request_id, outputs in groupby(tokens, _request_id):
                    self._on_tokens(worker, request_id, outputs, now)
            case LoadReport(load):
                self.state.report(load, now)
                self.dispatch.on_report(worker)
            case PagesChanged():
                if not self.state.on_pages(worker, message):
                    self._commands.append(Tell(worker, ResyncPages()))
            case Reserved(reservation):
                self.state.grant(worker, reservation.reservation_id)
                self._events.append((reservation.request_id, lifecycle.PagesReserved(reservation)))
            case ReservationRefused(reservation_id, request_id, _):
                self.state.refuse(worker, reservation_id)
                self._unreserve(self._records.get(request_id), worker, reservation_id)
                self._events.append((request_id, lifecycle.PagesRefused(reservation_id)))
            case HandoffEnded(request_id, reservation_id, outcome, report, reason):
                self._events.append((request_id, lifecycle.SourceEnded(reservation_id, outcome, report, reason)))
            case RequestFailed(request_id, error, text):
                self._events.append((request_id, lifecycle.Failed(error_from_name(error, text))))
            case Goodbye():
                self._lose(worker)

    def _on_tokens(self, worker: str, request_id: str, outputs: Iterable[TokenOutput], now: float) -> None:
        record = self._records.get(request_id)
        if record is None or record.closed:
            return
        if record.prefilling and worker == record.prefill_worker:  # not a late token of an earlier attempt
            record.prefilling = False
            self.dispatch.moved = True
            self.state.unassign(record.prefill_worker, request_id, now)
        tokens: list[TextToken] = []
        for output in outputs:
            tokens += record.stream.accept(output)
        if not tokens:
            return
        record.latency.on_tokens(len(tokens), now)
        self.dispatch.fairness.charge(record.request.tenant, output_tokens=len(tokens))
        if record.sequence is not None:
            record.sequence.emitted += len(tokens)
        self._commands.append(Show(request_id, tokens))
        if record.stream.stop_string_met:
            self._events.append((request_id, lifecycle.Stopped(FinishReason.STOP, None)))
        elif record.stream.finish is not None:
            finisher = worker if output.finish is not None else None  # None: its token had come early
            self._events.append((request_id, lifecycle.Finished(record.stream.finish, finisher)))

    def _register(self, message: Register, now: float) -> None:
        info = message.info
        if info.name in self.state.workers:
            self._lose(info.name)
        self._commands.append(Tell(info.name, Welcome(self.router_id, self.limits.report_interval_s)))
        for other in self.state.pool(*type(info.role)):
            self._commands.append(Tell(other.name, PeerJoined(info.endpoint)))
            self._commands.append(Tell(info.name, PeerJoined(other.info.endpoint)))
        self.state.register(info, now)
        self.dispatch.moved = True

    def _lose(self, worker: str) -> None:
        view = self.state.remove(worker)
        if view is None:
            return
        self.dispatch.moved = True
        for other in sorted(self.state.workers):
            self._commands.append(Tell(other, PeerLeft(view.info.endpoint.agent)))
        for record in self._records.values():
            if record.concerns(worker):
                self._events.append((record.request_id, lifecycle.Lost(worker)))

    def _settle(self, now: float) -> list[Command]:
        """Feed every event to its life cycle and place what can be placed, until nothing moves."""
        while True:
            while self._events:
                request_id, event = self._events.popleft()
                self._advance(request_id, event)
            if not self._place(now):
                commands, self._commands = self._commands, []
                return commands

    def _advance(self, request_id: str, event: lifecycle.Event) -> None:
        record = self._records.get(request_id)
        if record is None:
            return
        try:
            self._perform(record, record.life.send(event))
        except StopIteration as stop:
            self._perform(record, stop.value)
            self._forget(record)

    def _forget(self, record: Record) -> None:
        del self._records[record.request_id]
        self.dispatch.withdraw(record.request_id)
        self._clear(record)
        for reservation_id, worker in record.reserved_on.items():
            self.state.unreserve(worker, reservation_id)
        self.dispatch.moved = True

    def _clear(self, record: Record) -> None:
        """Nothing of an attempt counts in the ledger any more."""
        now = record.latency.last_token_s or record.latency.arrival_s
        self.state.unassign(record.prefill_worker, record.request_id, now)
        self.state.forget(record.decode_worker, record.request_id)
        record.sequence, record.prefilling, record.reservation_id = None, False, ""

    def _place(self, now: float) -> bool:
        """Carry out what is decided about requests that wait; False when nothing is."""
        verdicts = self.dispatch.next(now)
        for verdict in verdicts:
            match verdict:
                case Place(request_id, decision):
                    self._route(self._records[request_id], decision, now)
                case Refuse(request_id, error):
                    self.refused_requests += 1
                    self._events.append((request_id, lifecycle.Stopped(None, error)))
                case FoundDecode(request_id, worker):
                    self._events.append((request_id, lifecycle.DecodeFound(worker)))
        return bool(verdicts)

    def _route(self, record: Record, decision: RoutingDecision, now: float) -> None:
        record.prefill_worker = decision.prefill
        record.decode_worker = decision.prefill if decision.whole else ""
        record.attempts += 1
        if record.latency.routed_s is None:
            record.latency.routed_s = now
        item = record.placement_input
        self.dispatch.fairness.charge(record.request.tenant, prompt_tokens=item.num_tokens)
        self.explanations.decided(record.request_id, self.dispatch.placement.name, decision, item.output)
        self.state.assign(decision.prefill, record.request_id, item.num_tokens, item.page_keys, now)
        record.prefilling = True
        prompt = len(record.request.prompt)
        emitted = item.num_tokens - prompt
        record.sequence = RunningSequence(prompt, item.output, record.request.objectives.tpot_s, emitted)
        if decision.whole:
            self.state.expect(decision.prefill, record.request_id, record.sequence)
        self._events.append((record.request_id, lifecycle.Routed(decision)))

    def _perform(self, record: Record, effects: Sequence[lifecycle.Effect]) -> None:
        request, request_id = record.request, record.request_id
        for effect in effects:
            match effect:
                case lifecycle.Route():
                    self.dispatch.withdraw(request_id)
                    self._clear(record)
                    self.dispatch.wait(record.placement_input)
                case lifecycle.FindDecode(avoid):
                    self.dispatch.seek(record.placement_input, avoid)
                case lifecycle.StartPrefill(worker, hand_off):
                    record.resumed = tuple(record.stream.token_ids)
                    message = Prefill(request, record.resumed, hand_off, self.state.epoch(worker))
                    self._commands.append(Tell(worker, message))
                case lifecycle.ReservePages(worker, reservation_id):
                    self._reserve(record, worker, reservation_id)
                case lifecycle.StartHandoff(source, reservation):
                    self._commands.append(Tell(source, SendPages(request_id, reservation)))
                case lifecycle.CancelWork(worker):
                    self._commands.append(Tell(worker, Cancel(request_id)))
                case lifecycle.ReleasePages(worker, reservation_id):
                    self._unreserve(record, worker, reservation_id)
                    self._commands.append(Tell(worker, Release(reservation_id)))
                case lifecycle.End():
                    self._close(record, effect)

    def _reserve(self, record: Record, worker: str, reservation_id: str) -> None:
        self.state.forget(record.decode_worker, record.request_id)
        record.decode_worker, record.reservation_id = worker, reservation_id
        record.reserved_on[reservation_id] = worker
        self.state.reserve(worker, reservation_id, record.num_prefill_tokens)
        if record.sequence is not None:
            self.state.expect(worker, record.request_id, record.sequence)
        message = Reserve(reservation_id, record.request, record.resumed, self.state.epoch(worker))
        self._commands.append(Tell(worker, message))

    def _unreserve(self, record: Record | None, worker: str, reservation_id: str) -> None:
        """The worker holds no pages for it, and does not expect the sequence."""
        self.state.unreserve(worker, reservation_id)
        if record is not None and record.reservation_id == reservation_id:
            self.state.forget(worker, record.request_id)

    def _close(self, record: Record, end: lifecycle.End) -> None:
        record.closed = True
        self.dispatch.withdraw(record.request_id)
        self.finished_requests += end.error is None
        self.failed_requests += end.error is not None
        completion = record.complete(end)
        if end.error is None:
            self.output_length.observe(record.prediction, completion.output_tokens, end.reason is FinishReason.LENGTH)
        self.explanations.ended(completion)
        self._commands.append(Close(completion))
