"""The router's decisions: its view of the cluster, where each request runs, what each client sees.

Pure: every method takes an event and the time, and returns commands for the shell (router/driver.py) to perform.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from baton.config.schema import RouterSection
from baton.protocol import messages
from baton.protocol.errors import BatonError
from baton.protocol.messages import TokenOutput, WorkerMessage
from baton.protocol.request import FinishReason, Request
from baton.router.core import events, ledger
from baton.router.core.adoption import Adoption, Claim
from baton.router.core.automation import Automation
from baton.router.core.commands import Command, FinishStream, SendToWorker, StreamTokens
from baton.router.core.detokenizer import Vocabulary
from baton.router.core.dispatch import DecodeUnreachable, Dispatch, FoundDecode
from baton.router.core.explanation import Explanations
from baton.router.core.limits import check_id
from baton.router.core.live_request import LiveRequest, Phase, open_request, overdue
from baton.router.core.membership import Membership
from baton.router.core.operation import PROBE, Operation, OperationSpec
from baton.router.core.operations import RETRY_S, Action, Operations
from baton.router.core.pending_capacity import PendingCapacity
from baton.router.core.request_machine import RequestMachine, UnexpectedEvent
from baton.router.core.stream import OutputStream, TextToken
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
    unexpected_events: Counter[str] = field(default_factory=Counter)  # that no request should get; by kind
    strict: bool = False  # raise for an unexpected event, as tests want it
    _machine: RequestMachine = field(init=False)
    _events: deque[tuple[str, events.Event]] = field(default_factory=deque)
    _commands: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._machine = RequestMachine(self.state)
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
        live = open_request(request, stream, self.state, self.output_length, now)
        self.dispatch.arrived(request.tenant)
        self._requests[request.request_id] = live
        self.automation.on_arrival(live, now)
        self.dispatch.wait(live.placement_input)
        self._operate(self.adoption.on_submitted(live, resumed or bool(emitted)))
        return self._settle(now)

    def stop(self, request_id: str, error: BatonError, now: float) -> list[Command]:
        """Cancel a request: its client disconnected, or its deadline passed."""
        self._events.append((request_id, events.Stopped(None, error)))
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
            self._on_worker_message(worker, message, now)
        return self._settle(now)

    def _on_worker_message(self, worker: str, message: WorkerMessage, now: float) -> None:
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
            case messages.LinkMeasured():
                self.membership.rates.measured(worker, message)
            case messages.RoleChanged(role, epoch, _):
                self.state.change_role(worker, role, epoch)
                self._operate(self.operations.on_role_changed(worker, message, now))
            case messages.Goodbye(_, failed):
                self._lose(worker, True, now, died=failed)
                if not failed:
                    self.state.uncordon(worker)
            case messages.Register() | messages.Alive():
                pass
            case _:
                self._on_request_message(worker, message, now)

    def _on_request_message(self, worker: str, message: events.Message, now: float) -> None:
        """A message about one request; it is ignored if the worker was never assigned that."""
        live = self._requests.get(message.request_id)
        if live is not None and worker not in live.assignees:
            return
        transfers, unreachable = self.membership.transfers, False
        match message:
            case messages.Reserved():
                self.state.grant(worker, message.reservation_id)
            case messages.ReservationRefused(reservation_id):
                self.state.refuse(worker, reservation_id)
            case messages.HandoffEnded(_, reservation_id):
                unreachable = transfers.unreachable(worker, reservation_id)
                self._commands += transfers.on_ended(worker, message)
            case messages.HandoffStalled(_, reservation_id):
                transfers.on_stalled(worker, reservation_id)
            case messages.RequestFailed(request_id) if request_id.startswith(PROBE):
                self.operations.on_probe(worker, message, now)
        self._events.append((message.request_id, events.Reported(worker, message, unreachable)))

    def _on_tokens(self, worker: str, request_id: str, outputs: Iterable[TokenOutput], now: float) -> None:
        live = self._requests.get(request_id)
        if live is None or live.closed or worker not in live.assignees:
            if request_id.startswith(PROBE):
                for output in outputs:
                    self.operations.on_probe(worker, output, now)
            return
        if live.phase is Phase.PREFILLING:
            self._advance(request_id, events.FirstToken(worker), now)
            self.dispatch.dirty |= live.phase is not Phase.PREFILLING
        tokens: list[TextToken] = []
        for output in outputs:
            tokens += live.stream.accept(output)
        if not tokens:
            return
        live.on_tokens(len(tokens), now)
        self.dispatch.fairness.charge(live.request.tenant, output_tokens=len(tokens))
        self._commands.append(StreamTokens(request_id, tokens))
        if live.stream.stop_string_met:
            self._events.append((request_id, events.Stopped(FinishReason.STOP, None)))
        elif live.stream.finish is not None:
            finisher = worker if output.finish is not None else None  # None: its token had come early
            self._events.append((request_id, events.Finished(live.stream.finish, finisher)))

    def _admit(self, now: float) -> None:
        acks = self.membership.admit(self.router_id, now)
        self._commands += acks
        self.dispatch.dirty |= bool(acks)
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
        self.dispatch.dirty = True
        self.operations.on_worker_lost(worker, now)
        loss = events.LossReason.LEFT if not died else events.LossReason.DIED if certain else events.LossReason.SILENT
        for live in self._requests.values():
            if worker in live.holders:
                self._events.append((live.request_id, events.Lost(worker, loss)))

    def _settle(self, now: float) -> list[Command]:
        """Feed every event to its request and place requests, until no event is left."""
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

    def _advance(self, request_id: str, event: events.Event, now: float) -> None:
        """One event of a request: its new state, what is booked and waited for by it, and what goes out."""
        live = self._requests.get(request_id)
        if isinstance(event, events.Adopted) and (live is None or live.closed):
            self._commands.append(self.adoption.too_late(request_id, event))
        if live is None:
            return
        waited = live.waits_for
        try:
            outputs = self._machine.on_event(live, event, now)
        except UnexpectedEvent as error:
            if self.strict:
                raise
            self.unexpected_events[error.message] += 1
            return
        ledger.update(live, self.state, now)
        if live.waits_for != waited:
            self.dispatch.wait_for(live.waits_for, live.placement_input)
        for output in outputs:
            self._perform(live, output, now)
        if live.phase is Phase.CLOSED:
            del self._requests[request_id]
            self.dispatch.forget(request_id, live.request.tenant)

    def _perform(self, live: LiveRequest, output: events.Output, now: float) -> None:
        match output:
            case SendToWorker():
                self._commands += self.membership.transfers.outgoing(output, live.target or "")
            case events.MigrationEnded(worker, reason):
                live.stays_until_s = now + RETRY_S if worker is None else 0.0
                self.operations.on_migration_ended(live.request_id, worker, reason, now)
            case events.End(reason, error):
                self._close(live, reason, error)

    def _place(self, now: float) -> bool:
        """Carry out placement decisions about waiting requests; False when there is none."""
        verdicts = self.dispatch.next(now)
        for verdict in verdicts:
            match verdict:
                case Place(request_id, decision):
                    self._route(self._requests[request_id], decision, now)
                case Refuse(request_id, error):
                    self.refused_requests += 1
                    self._events.append((request_id, events.Stopped(None, error)))
                case FoundDecode(request_id, worker):
                    self._events.append((request_id, events.DecodeFound(worker)))
                case DecodeUnreachable(request_id):
                    self._events.append((request_id, events.NoReachableDecode()))
        return bool(verdicts)

    def _route(self, live: LiveRequest, decision: RoutingDecision, now: float) -> None:
        item = live.placement_input
        self.dispatch.fairness.charge(live.request.tenant, prompt_tokens=item.num_tokens)
        self.explanations.decided(live.request_id, self.dispatch.placement.name, decision, item.output)
        self._advance(live.request_id, events.Placed(decision), now)

    def _close(self, live: LiveRequest, reason: FinishReason | None, error: BatonError | None) -> None:
        completion = live.complete(error, reason)
        if error is None:
            self.output_length.observe(live.prediction, completion.output_tokens, reason is FinishReason.LENGTH)
        self.explanations.ended(completion)
        self._commands.append(FinishStream(completion))
