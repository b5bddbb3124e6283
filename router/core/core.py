"""The router's decisions: its view of the cluster, where each request runs, what each client sees.

Pure: every method takes an event and the time, and returns commands for the shell (router/driver.py) to perform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from baton.config.schema import RouterSection
from baton.protocol import messages
from baton.protocol.errors import BatonError
from baton.protocol.messages import WorkerMessage
from baton.protocol.request import Request
from baton.router.core import events
from baton.router.core.adoption import Adoption, Claim
from baton.router.core.arrivals import open_request
from baton.router.core.automation import Automation
from baton.router.core.commands import Command, SendToWorker
from baton.router.core.detokenizer import Vocabulary
from baton.router.core.dispatch import Dispatch
from baton.router.core.explanation import Explanations
from baton.router.core.limits import check_id
from baton.router.core.live_request import LiveRequest, overdue
from baton.router.core.membership import Membership
from baton.router.core.operation import Operation, OperationSpec
from baton.router.core.operations import Action, Operations, Probe
from baton.router.core.pending_capacity import PendingCapacity
from baton.router.core.requests import Requests
from baton.router.core.stream import OutputStream, TextToken
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.output_length import OutputLength
from baton.router.policy.placement import Placement, RoutingDecision

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
    adoption: Adoption = field(init=False)
    pending_capacity: PendingCapacity = field(init=False)
    operations: Operations = field(init=False)
    membership: Membership = field(init=False)
    automation: Automation = field(init=False)
    requests: Requests = field(init=False)

    def __post_init__(self) -> None:
        live: dict[str, LiveRequest] = {}
        self.dispatch = Dispatch(self.placement, self.state)
        self.adoption = Adoption(self.dispatch, self.explanations, live, self.config, self.started_s)
        self.pending_capacity = PendingCapacity(
            self.state, self.dispatch, self.config.no_workers_grace_s, self.started_s
        )
        self.operations = Operations(self.state, live, self.adoption.orphans)
        self.membership = Membership(self.state, self.config)
        self.automation = Automation(self.state, self.dispatch, self.operations, live)
        self.requests = Requests(
            self.state,
            self.dispatch,
            self.membership.transfers,
            self.operations,
            self.explanations,
            self.output_length,
            live,
        )

    @property
    def queued(self) -> int:
        return self.dispatch.queued

    @property
    def live(self) -> int:
        return len(self.requests.live)

    def replay(self, request: Request) -> list[TextToken] | None:
        """The streamed tokens of a live request of this id and content (see `LiveRequest.replay`); None without one."""
        record = self.requests.live.get(request.request_id)
        return None if record is None else record.replay(request)

    def submit(self, request: Request, now: float, emitted: Sequence[int] = (), resumed: bool = False) -> list[Command]:
        """Accept a request, or the rest of one; raises (and changes nothing) when it cannot be served.

        The last of the `emitted` output tokens is computed again, because it may have been the end.
        """
        check_id(request.request_id, self.requests.live)
        self.dispatch.check_queue(self.config.max_queued, now)
        self.pending_capacity.check(request, now)
        stream = OutputStream(request, self.vocabulary)
        stream.resume(emitted[:-1])
        live = open_request(request, stream, self.state, self.output_length, now)
        self.requests.add(live)
        item = live.placement_input
        self.automation.on_arrival(live, item, now)
        self.dispatch.wait(item)
        self._operate(self.adoption.on_submitted(live, resumed or bool(emitted)), now)
        return self._settle(now)

    def stop(self, request_id: str, error: BatonError, now: float) -> list[Command]:
        """Cancel a request: its client disconnected, or its deadline passed."""
        self.requests.events.append((request_id, events.Stopped(None, error)))
        return self._settle(now)

    def tick(self, now: float) -> list[Command]:
        """Handle deadlines, worker timeouts, and workers short of pages or too slow. Call it a few times a second."""
        self.requests.events += overdue(self.requests.live.values(), now)
        for name in self.membership.silent(now):
            self._lose(name, False, now)
        self.requests.commands += [*self.membership.tick(now), *self.adoption.orphans.expired(now)]
        self._admit(now)
        self.state.prefix_index.sweep()
        self.dispatch.dirty = self.operations.dirty = True
        commands = self._settle(now)
        self._operate(self.automation.tick(now), now)
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
        self._operate(actions, now)
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
            self.requests.feed(now)  # its sequences may be continued there
            self.requests.commands += self.membership.returned(message, now)
            self._admit(now)
        elif worker in self.state.workers:
            self.state.workers[worker].last_message_s = now
            self._on_worker_message(worker, message, now)
        return self._settle(now)

    def _on_worker_message(self, worker: str, message: WorkerMessage, now: float) -> None:
        match message:
            case messages.StepOutput(tokens):
                for request_id, outputs in groupby(tokens, _request_id):
                    self.requests.on_tokens(worker, request_id, outputs, now)
            case messages.LoadReport(load):
                self.state.report(load, now)
                self.dispatch.on_report(worker)
            case messages.PagesChanged():
                if not self.state.on_pages(worker, message):
                    self.requests.commands.append(SendToWorker(worker, messages.ResyncPages()))
            case messages.LinkMeasured():
                self.membership.rates.measured(worker, message)
            case messages.RoleChanged(role, epoch, _):
                self.state.change_role(worker, role, epoch)
                self._operate(self.operations.on_role_changed(worker, message, now), now)
            case messages.Goodbye(_, failed):
                self._lose(worker, True, now, died=failed)
                if not failed:
                    self.state.uncordon(worker)
            case messages.Register() | messages.Alive():
                pass
            case _:
                self.requests.on_message(worker, message)

    def _admit(self, now: float) -> None:
        acks = self.membership.admit(self.router_id, now)
        self.requests.commands += acks
        joined, self.membership.admitted = self.membership.admitted, []
        self._operate(self.adoption.on_joined(joined, now), now)
        self.requests.events += self.pending_capacity.answer(self.requests.live, now)

    def _lose(self, worker: str, certain: bool, now: float, died: bool = True) -> None:
        self.adoption.orphans.lost(worker)
        orders = self.membership.lose(worker, certain, now, died)
        if orders is None:
            self.requests.commands += self.membership.ended(worker, now) if certain else []
            return
        self.requests.commands += orders
        self.operations.on_worker_lost(worker, now)
        loss = events.LossReason.LEFT if not died else events.LossReason.DIED if certain else events.LossReason.SILENT
        self.requests.on_worker_lost(worker, loss)

    def _settle(self, now: float) -> list[Command]:
        """Feed every event to its request and place requests, until no event is left."""
        while True:
            self.requests.feed(now)
            if not self.requests.place(now) and not self._operate(self.operations.advance(now), now):
                commands, self.requests.commands = self.requests.commands, []
                return commands

    def _operate(self, actions: Sequence[Action | Claim], now: float) -> bool:
        for action in actions:
            match action:
                case Probe(request, worker, local):
                    live = open_request(request, OutputStream(request, None), self.state, self.output_length, now)
                    live.pinned = True
                    self.requests.add(live)
                    decision = RoutingDecision(worker, None, local, "it verifies the worker's new role")
                    self.requests.events.append((request.request_id, events.Placed(decision)))
                case tuple():
                    self.requests.events.append(action)
                case _:
                    self.requests.commands.append(action)
        return bool(actions)
