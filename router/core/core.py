"""The router's decisions: its view of the cluster, where each request runs, what each client sees.

Pure: every method takes an event and the time, and returns commands for the shell (router/driver.py) to perform.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from baton.config.schema import RouterSection
from baton.protocol import messages
from baton.protocol.errors import BatonError
from baton.protocol.messages import TokenOutput, WorkerMessage
from baton.protocol.request import FinishReason, Request
from baton.router.core import effects, ledger, life_events
from baton.router.core.adoption import Adoption, Claim
from baton.router.core.automation import Automation
from baton.router.core.commands import Command, FinishStream, SendToWorker, StreamTokens
from baton.router.core.detokenizer import Vocabulary
from baton.router.core.dispatch import DecodeUnreachable, Dispatch, FoundDecode
from baton.router.core.explanation import Explanations
from baton.router.core.limits import check_id
from baton.router.core.live_request import LiveRequest, open_request, overdue
from baton.router.core.membership import Membership
from baton.router.core.operation import PROBE, Operation, OperationSpec
from baton.router.core.operations import RETRY_S, Action, Operations
from baton.router.core.pending_capacity import PendingCapacity
from baton.router.core.stream import OutputStream, TextToken
from baton.router.core.worker_events import life_events_of, may_report
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.output_length import OutputLength
from baton.router.policy.placement import Place, Placement, Refuse
from baton.router.policy.routing import RoutingDecision

_request_id = attrgetter("request_id")


@dataclass(eq=False)
class RouterCore:
    """Events in, commands out; the same events at the same times give the same commands."""

    router_id: str
    placement: Placement
    vocabulary: Vocabulary | None  # turns token ids into text; None where no text is needed
    config: RouterSection = field(default_factory=RouterSection)
    state: ClusterState = field(default_factory=ClusterState)
    output_length: OutputLength = field(default_factory=OutputLength)
    explanations: Explanations = field(default_factory=Explanations)
    started_s: float = float("-inf")
    dispatch: Dispatch = field(init=False)
    refused_requests: int = 0
    adoption: Adoption = field(init=False)
    pending_capacity: PendingCapacity = field(init=False)
    operations: Operations = field(init=False)
    membership: Membership = field(init=False)
    automation: Automation = field(init=False)
    _requests: dict[str, LiveRequest] = field(default_factory=dict)
    _events: deque[tuple[str, life_events.Event]] = field(default_factory=deque)
    _commands: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dispatch = Dispatch(self.placement, self.state)
        self.adoption = Adoption(self.dispatch, self.explanations, self._requests, self.config, self.started_s)
        self.pending_capacity = PendingCapacity(
            self.state, self.dispatch, self.config.no_workers_grace_s, self.started_s
        )
        self.operations = Operations(self.state, self._requests, self.adoption.orphans)
        self.membership = Membership(self.state, self.config)
        self.automation = Automation(self.state, self.dispatch, self.operations, self._requests)

    @property
    def queued(self) -> int:
        return self.dispatch.queued

    @property
    def live(self) -> int:
        return len(self._requests)

    def replay(self, request: Request) -> list[TextToken] | None:
        """The streamed tokens of a live request of this id and content (see `LiveRequest.replay`); None without one."""
        record = self._requests.get(request.request_id)
        return None if record is None else record.replay(request)

    def submit(self, request: Request, now: float, emitted: Sequence[int] = (), resumed: bool = False) -> list[Command]:
        """Accept a request, or the rest of one; raises (and changes nothing) when it cannot be served.

        The last of the `emitted` output tokens is computed again, because it may have been the end.
        """
        check_id(request.request_id, self._requests)
        self.dispatch.check_queue(self.config.max_queued, now)
        self.pending_capacity.check(request, now)
        stream = OutputStream(request, self.vocabulary)
        stream.resume(emitted[:-1])
        record = open_request(request, stream, self.state, self.output_length, now)
        self.dispatch.arrived(request.tenant)
        self._requests[request.request_id] = record
        self.automation.on_arrival(record, now)
        self._perform(record, next(record.life), now)
        self._operate(self.adoption.on_submitted(record, resumed or bool(emitted)))
        return self._settle(now)

    def stop(self, request_id: str, error: BatonError, now: float) -> list[Command]:
        """Cancel a request: its client disconnected, or its deadline passed."""
        self._events.append((request_id, life_events.Stopped(None, error)))
        return self._settle(now)

    def tick(self, now: float) -> list[Command]:
        """Handle deadlines, worker timeouts, and workers short of pages or too slow. Call it a few times a second."""
        self._events += overdue(self._requests.values(), now)
        for name in self.membership.silent(now):
            self._lose(name, False, now)
        self._commands += [*self.membership.tick(now), *self.adoption.orphans.expired(now)]
        self._admit(now)
        self.state.prefix_index.sweep()
        self.dispatch.dirty = self.operations.dirty = True
        commands = self._settle(now)
        self._operate(self.automation.tick(now))
        return commands + self._settle(now)

    def start_operation(
        self, operation_id: str, spec: OperationSpec, dry_run: bool, now: float
    ) -> tuple[Operation, list[Command]]:
        """Start an operator's operation; raises (and changes nothing) when it is not allowed."""
        operation = self.operations.start(operation_id, spec, dry_run, now)
        return operation, self._settle(now)

    def cancel_operation(self, operation_id: str, now: float) -> tuple[Operation, list[Command]]:
        """Cancel an operation's remaining steps; raises `NotFound`."""
        operation, actions = self.operations.cancel(operation_id, now)
        self._operate(actions)
        return operation, self._settle(now)

    def on_worker_lost(self, worker: str, now: float, certain: bool = True) -> list[Command]:
        """A worker's process has ended; not `certain`: only a message to it could not be queued."""
        self._lose(worker, certain, now)
        return self._settle(now)

    def on_frame(self, worker: str, incarnation: str, batch: Sequence[WorkerMessage], now: float) -> list[Command]:
        """Messages of one incarnation of a worker; an unknown incarnation is told to re-register."""
        known = self.membership.knows(worker, incarnation)
        if not known and not any(isinstance(message, messages.Register) for message in batch):
            return list(self.membership.reregister(worker, incarnation, self.router_id))
        return [command for message in batch for command in self.on_message(worker, message, now)]

    def on_message(self, worker: str, message: WorkerMessage, now: float) -> list[Command]:
        """A message of a registered worker; anything but `Register` from an unknown one is ignored."""
        if isinstance(message, messages.Register):
            if self.membership.knows(worker, message.info.incarnation):
                return []  # a duplicate
            self._lose(message.info.name, False, now, died=False)
            self._feed(now)  # its sequences may be continued there
            self._commands += self.membership.returned(message, now)
            self._admit(now)
        elif worker in self.state.workers:
            self.state.workers[worker].last_message_s = now
            if may_report(worker, message, self._requests):
                self._on_worker_message(worker, message, now)
        return self._settle(now)

    def _on_worker_message(self, worker: str, message: WorkerMessage, now: float) -> None:
        self._events += life_events_of(worker, message, self.membership.links)
        request_id = getattr(message, "request_id", "")
        self._commands += ledger.apply(worker, message, self._requests.get(request_id), self.state, self.membership)
        match message:
            case messages.StepOutput(tokens):
                for request_id, outputs in groupby(tokens, _request_id):
                    self._on_tokens(worker, request_id, outputs, now)
            case messages.LoadReport(load):
                self.state.report(load, now)
                self.dispatch.on_report(worker)
            case messages.PagesChanged():
                if not self.state.on_pages(worker, message):
                    self._commands.append(SendToWorker(worker, messages.ResyncPages()))
            case messages.RoleChanged(role, epoch, _):
                self.state.change_role(worker, role, epoch)
                self._operate(self.operations.on_role_changed(worker, message, now))
            case messages.RequestFailed() if request_id.startswith(PROBE):
                self.operations.on_probe(worker, message, now)
            case messages.Goodbye(_, failed):
                self._lose(worker, True, now, died=failed)
                if not failed:
                    self.state.uncordon(worker)

    def _on_tokens(self, worker: str, request_id: str, outputs: Iterable[TokenOutput], now: float) -> None:
        record = self._requests.get(request_id)
        if record is None or record.closed or worker not in record.assignees:
            if request_id.startswith(PROBE):
                for output in outputs:
                    self.operations.on_probe(worker, output, now)
            return
        if record.prefilling and worker == record.prefill_worker:  # not a late token of an earlier attempt
            ledger.computed(record, self.state, now)
            record.decoding |= worker == record.decode_worker
        tokens: list[TextToken] = []
        for output in outputs:
            tokens += record.stream.accept(output)
        if not tokens:
            return
        record.on_tokens(len(tokens), now)
        self.dispatch.fairness.charge(record.request.tenant, output_tokens=len(tokens))
        self._commands.append(StreamTokens(request_id, tokens))
        if record.stream.stop_string_met:
            self._events.append((request_id, life_events.Stopped(FinishReason.STOP, None)))
        elif record.stream.finish is not None:
            finisher = worker if output.finish is not None else None  # None: its token had come early
            self._events.append((request_id, life_events.Finished(record.stream.finish, finisher)))

    def _admit(self, now: float) -> None:
        acks = self.membership.admit(self.router_id, now)
        self._commands += acks
        joined, self.membership.admitted = self.membership.admitted, []
        self._operate(self.adoption.on_joined(joined, now))
        self._events += self.pending_capacity.answer(self._requests, now)

    def _lose(self, worker: str, certain: bool, now: float, died: bool = True) -> None:
        self.adoption.orphans.lost(worker)
        orders = self.membership.lose(worker, certain, now, died)
        if orders is None:
            self._commands += self.membership.ended(worker, now) if certain else []
            return
        self._commands += orders
        self.operations.on_worker_lost(worker, now)
        loss = (
            life_events.LossReason.LEFT
            if not died
            else life_events.LossReason.DIED
            if certain
            else life_events.LossReason.SILENT
        )
        for record in self._requests.values():
            if worker in record.holders:
                record.holders.discard(worker)
                self._events.append((record.request_id, life_events.Lost(worker, loss)))

    def _settle(self, now: float) -> list[Command]:
        """Feed every event to its life cycle and place requests, until no event is left."""
        while True:
            self._feed(now)
            if not self._place(now) and not self._operate(self.operations.advance(now)):
                commands, self._commands = self._commands, []
                return commands

    def _feed(self, now: float) -> None:
        while self._events:
            request_id, event = self._events.popleft()
            self._advance(request_id, event, now)

    def _operate(self, actions: Sequence[Action | Claim]) -> bool:
        self._events += [action for action in actions if isinstance(action, tuple)]
        self._commands += [action for action in actions if not isinstance(action, tuple)]
        return bool(actions)

    def _advance(self, request_id: str, event: life_events.Event, now: float) -> None:
        record = self._requests.get(request_id)
        if isinstance(event, life_events.Held) and (record is None or record.closed):
            self._commands.append(self.adoption.too_late(request_id, event))
        if record is None:
            return
        if isinstance(event, life_events.Migrate):
            record.migrating = True
        try:
            self._perform(record, record.life.send(event), now)
        except StopIteration as stop:
            self._perform(record, stop.value, now)
            self._forget(record, now)

    def _forget(self, record: LiveRequest, now: float) -> None:
        del self._requests[record.request_id]
        self.dispatch.forget(record.request_id, record.request.tenant)
        ledger.forget(record, self.state, now)

    def _place(self, now: float) -> bool:
        """Carry out placement decisions about waiting requests; False when there is none."""
        verdicts = self.dispatch.next(now)
        for verdict in verdicts:
            match verdict:
                case Place(request_id, decision):
                    self._route(self._requests[request_id], decision, now)
                case Refuse(request_id, error):
                    self.refused_requests += 1
                    self._events.append((request_id, life_events.Stopped(None, error)))
                case FoundDecode(request_id, worker):
                    self._events.append((request_id, life_events.DecodeFound(worker)))
                case DecodeUnreachable(request_id):
                    self._events.append((request_id, life_events.NoReachableDecode()))
        return bool(verdicts)

    def _route(self, record: LiveRequest, decision: RoutingDecision, now: float) -> None:
        ledger.begin(record, decision, self.state, now)
        item = record.placement_input
        self.dispatch.fairness.charge(record.request.tenant, prompt_tokens=item.num_tokens)
        self.explanations.decided(record.request_id, self.dispatch.placement.name, decision, item.output)
        self._events.append((record.request_id, life_events.Routed(decision)))

    def _perform(self, record: LiveRequest, wanted: Sequence[effects.Effect], now: float) -> None:
        request_id = record.request_id
        for effect in wanted:
            match effect:
                case effects.Route():
                    self.dispatch.withdraw(request_id)
                    ledger.clear(record, self.state, now)
                    self.dispatch.wait(record.placement_input)
                case effects.FindDecode() | effects.FindCapacity() | effects.StopSeeking():
                    self.dispatch.perform(effect, record.placement_input)
                case effects.MigrationEnded():
                    ledger.migration_ended(record, effect.worker, self.state)
                    record.stays_until_s = now + RETRY_S if effect.worker is None else 0.0
                    self.operations.on_migration_ended(request_id, effect.worker, effect.reason, now)
                case effects.End():
                    self._close(record, effect)
                case _:
                    self._commands += ledger.orders(record, effect, self.state, self.membership.fence)

    def _close(self, record: LiveRequest, end: effects.End) -> None:
        record.closed = True
        self.dispatch.withdraw(record.request_id)
        completion = record.complete(end)
        if end.error is None:
            self.output_length.observe(record.prediction, completion.output_tokens, end.reason is FinishReason.LENGTH)
        self.explanations.ended(completion)
        self._commands.append(FinishStream(completion))
