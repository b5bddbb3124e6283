"""The router's decisions: its view of the cluster, where each request runs, what each gateway is sent.

Pure: every method takes an event and the time, and returns commands for the shell (router/driver.py) to perform.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from baton.config.schema import AccessSection, RouterSection
from baton.protocol import messages, session_messages
from baton.protocol.gateway_messages import GatewayMessage, RegisterGateway
from baton.protocol.messages import WorkerMessage
from baton.router.core import events
from baton.router.core.adoption import Adoption, Claim
from baton.router.core.automation import Automation
from baton.router.core.commands import Command, SendToWorker
from baton.router.core.dispatch import Dispatch
from baton.router.core.explanation import Explanations
from baton.router.core.gateways import Gateways
from baton.router.core.intake import Intake
from baton.router.core.live_request import LiveRequest
from baton.router.core.membership import Membership
from baton.router.core.operation import Operation, OperationSpec
from baton.router.core.operations import Action, Operations, Probe
from baton.router.core.requests import Requests
from baton.router.core.submissions import Submissions, probing
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.output_length import OutputLength
from baton.router.policy.placement import Placement, RoutingDecision

_RequestMessage = messages.SequenceMessage | messages.HandoffMessage
_FROM_GATEWAY = frozenset(typing.get_args(GatewayMessage)) - frozenset(typing.get_args(WorkerMessage))


@dataclass(eq=False)
class RouterCore:
    """Events in, commands out; the same events at the same times give the same commands."""

    router_id: str
    placement: Placement
    config: RouterSection = field(default_factory=RouterSection)
    state: ClusterState = field(default_factory=ClusterState)
    output_length: OutputLength = field(default_factory=OutputLength)
    explanations: Explanations = field(default_factory=Explanations)
    started_s: float = float("-inf")
    access: AccessSection = field(default_factory=AccessSection)
    public_key: Callable[[str], str] = lambda name: ""  # of a worker or gateway; empty on an open link
    dispatch: Dispatch = field(init=False)
    adoption: Adoption = field(init=False)
    gateways: Gateways = field(init=False)
    intake: Intake = field(init=False)
    operations: Operations = field(init=False)
    membership: Membership = field(init=False)
    automation: Automation = field(init=False)
    requests: Requests = field(init=False)
    submissions: Submissions = field(init=False)

    def __post_init__(self) -> None:
        live: dict[str, LiveRequest] = {}
        self.dispatch = Dispatch(self.placement, self.state)
        self.adoption = Adoption(self.dispatch, self.explanations, live, self.config, self.started_s)
        self.gateways = Gateways(self.state, self.config, self.public_key, self.started_s)
        grace_s = self.config.no_workers_grace_s
        max_streams = self.access.max_streams_per_tenant
        self.intake = Intake(self.state, self.output_length, max_streams, grace_s, self.started_s)
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
            self.gateways,
            self.intake,
            self.config.claim_within_s,
            live,
        )
        self.submissions = Submissions(
            self.router_id, self.config, self.gateways, self.intake, self.requests, self.adoption, self.automation
        )

    @property
    def queued(self) -> int:
        return self.dispatch.queued

    @property
    def live(self) -> int:
        return len(self.requests.live)

    def tick(self, now: float) -> list[Command]:
        """Handle deadlines, worker timeouts, and workers short of pages or too slow. Call it a few times a second."""
        self.requests.end_overdue(now)
        for name in self.membership.silent(now):
            self._lose(name, False, now)
        for name in self.gateways.silent(now):
            self.submissions.lose(name, now, certain=False)
        for name in list(self.state.cut):
            self.requests.cut_off(name, self.gateways.cut_off(name))
        self.requests.commands += [*self.membership.tick(now), *self.gateways.kills(now)]
        self.requests.commands += self.adoption.orphans.expired(now)
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

    def on_gateway_lost(self, gateway: str, now: float, certain: bool = True) -> list[Command]:
        """A gateway's process has ended, or (not `certain`) its link has taken no message: it must register again."""
        self.submissions.lose(gateway, now, certain)
        return self._settle(now)

    def on_frame(
        self, peer: str, incarnation: str, batch: Sequence[WorkerMessage | GatewayMessage], now: float
    ) -> list[Command]:
        """Messages of one incarnation of a worker or gateway; an unknown one is ordered to re-register."""
        of_gateway = peer in self.gateways or any(type(message) in _FROM_GATEWAY for message in batch)
        if of_gateway:
            known = self.gateways.has_registered(peer, incarnation)
            if not known and not any(isinstance(one, RegisterGateway) for one in batch):
                return list(self.gateways.reregister(peer, incarnation, self.router_id, now))
        else:
            known = self.membership.has_registered(peer, incarnation)
            if not known and not any(isinstance(message, session_messages.Register) for message in batch):
                return list(self.membership.reregister(peer, incarnation, self.router_id))
        for message in batch:
            self._on_message(peer, message, now)
            self.requests.feed(now)
        return self._settle(now)

    def on_message(self, peer: str, message: WorkerMessage | GatewayMessage, now: float) -> list[Command]:
        """A message of a registered worker or gateway; anything but a registration from an unknown one is ignored."""
        self._on_message(peer, message, now)
        return self._settle(now)

    def _on_message(self, peer: str, message: WorkerMessage | GatewayMessage, now: float) -> None:
        if isinstance(message, RegisterGateway):
            self.submissions.register(message, now)
        elif peer in self.gateways:
            self.submissions.on_message(peer, message, now)
        elif isinstance(message, session_messages.Register):
            self._register(message, now)
        elif peer in self.state.workers:
            self.state.workers[peer].last_message_s = now
            self._on_worker_message(peer, message, now)

    def _register(self, message: session_messages.Register, now: float) -> None:
        """A worker joins, or joins again."""
        worker = message.info.name
        if self.membership.has_registered(worker, message.info.incarnation):
            return  # a duplicate
        self._lose(worker, False, now, died=False)
        self.requests.feed(now)  # its sequences may be continued there
        self.requests.commands += self.membership.returned(message, now)
        self._admit(now)

    def _on_worker_message(self, worker: str, message: WorkerMessage | GatewayMessage, now: float) -> None:
        match message:
            case session_messages.LoadReport(load):
                self.state.report(load, now)
                self.dispatch.on_report(worker)
            case session_messages.PagesChanged():
                if not self.state.on_pages(worker, message):
                    self.requests.commands.append(SendToWorker(worker, session_messages.ResyncPages()))
            case session_messages.LinkMeasured():
                self.membership.rates.measured(worker, message)
            case session_messages.GatewayUnreachable(gateway, incarnation, reachable):
                if reachable:
                    self.gateways.on_reached(gateway, worker)
                elif self.gateways.has_registered(gateway, incarnation):
                    self.gateways.on_unreachable(gateway, worker, now)
            case session_messages.RoleChanged(role, epoch, _):
                self.state.change_role(worker, role, epoch)
                self._operate(self.operations.on_role_changed(worker, message, now), now)
            case session_messages.Goodbye(_, failed):
                self._lose(worker, True, now, died=failed)
                if not failed:
                    self.state.uncordon(worker)
            case session_messages.Alive():
                pass
            case _ if isinstance(message, _RequestMessage):
                self.requests.on_worker_message(worker, message)

    def _admit(self, now: float) -> None:
        acks = self.membership.admit(self.router_id, now)
        self.requests.commands += acks
        joined, self.membership.admitted = self.membership.admitted, []
        for worker in joined:
            self.requests.commands += self.gateways.on_worker_joined(worker.info.name)
        self._operate(self.adoption.on_joined(joined, now), now)
        for request_id, error in self.intake.answer(self.requests.live, now):
            self.requests.refuse(request_id, error, now)

    def _lose(self, worker: str, certain: bool, now: float, died: bool = True) -> None:
        self.adoption.orphans.lost(worker)
        orders = self.membership.lose(worker, certain, now, died)
        if orders is None:
            self.requests.commands += self.membership.ended(worker, now) if certain else []
            return
        self.requests.commands += [*orders, *self.gateways.on_worker_left(worker)]
        self.operations.on_worker_lost(worker, now)
        loss = events.LossReason.LEFT if not died else events.LossReason.DIED if certain else events.LossReason.SILENT
        self.requests.on_worker_lost(worker, loss)

    def _settle(self, now: float) -> list[Command]:
        """Feed every event to its request and place requests, until no event is left."""
        while True:
            self.requests.feed(now)
            if not self.requests.place(now) and not self._operate(self.operations.advance(now), now):
                self.requests.commands += self.gateways.changed_pools(now)
                commands, self.requests.commands = self.requests.commands, []
                return commands

    def _operate(self, actions: Sequence[Action | Claim], now: float) -> bool:
        for action in actions:
            match action:
                case Probe(request, worker, local):
                    live = self.intake.open(probing(request), "", "", now)
                    live.pinned = True
                    self.requests.add(live)
                    decision = RoutingDecision(worker, None, local, "it verifies the worker's new role")
                    self.requests.events.append((request.request_id, events.Placed(decision)))
                case _:
                    self.requests.take(action)
        return bool(actions)
