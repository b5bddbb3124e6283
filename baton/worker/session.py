"""A worker's session: incarnation, registration, role, reports, writes in flight, links to gateways. Pure.

    starting ──transport──► registering ──RegisterAck──► serving
       ▲                         └──┐                      │ Reregister, or the router's link breaks or is full
       └──── no write in flight ── leaving ◄───────────────┘

Sequences that are kept decode in every phase, and their tokens reach their gateways without the router.

The loop (baton/worker/loop.py) is the shell around it, the simulator another. A shell calls `plan` and `absorb` around
each step, handles messages between steps only, and performs the commands in order before it calls again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

from baton.engine.step import StepPlan, StepResult
from baton.protocol.gateway_messages import AttachStreams
from baton.protocol.handoff import HandoffNotice
from baton.protocol.messages import RouterMessage, WorkerMessage
from baton.protocol.session_messages import (
    Alive,
    GatewayJoined,
    GatewayLeft,
    LinkMeasured,
    PeerJoined,
    PeerLeft,
    Register,
    RegisterAck,
    Reregister,
    ResyncPages,
    SwitchRole,
)
from baton.protocol.worker import Endpoint, StepSample, WorkerInfo
from baton.worker.core.gateway_links import GatewayLinks, LinkCommand
from baton.worker.core.link_rates import LinkRates
from baton.worker.core.reports import Reports
from baton.worker.core.role import Command, HandoffTarget, Role, Send, WriteEnded, WritePages
from baton.worker.core.session_commands import Connect, Disconnect, Exit, Log, NewTransport, SessionCommand
from baton.worker.core.state import WorkerState
from baton.worker.core.write_watch import WriteWatch
from baton.worker.role_switch import make_role, switch_role

FINISH_WRITES_S = 5.0  # how long writes in flight may hold up a new registration
ALIVE_EVERY_S = 0.5  # until the registration is acknowledged: a router without it answers with `Reregister`


class Phase(Enum):
    STARTING = 1  # it has no transport
    REGISTERING = 2  # it obeys no orders: those on their way are for its last incarnation
    SERVING = 3
    LEAVING = 4  # it waits for its writes to end, to register under another incarnation


@dataclass(eq=False)
class WorkerSession:
    """Owns the role. `info` and `state` are those of the present incarnation; `new_incarnation` names the next ones."""

    info: WorkerInfo
    state: WorkerState
    new_incarnation: Callable[[], str]
    role: Role = field(init=False)
    phase: Phase = Phase.STARTING
    outbox: list[WorkerMessage] = field(default_factory=list)  # the shell removes what it has sent
    _router_id: str = ""  # of the router that acknowledged a registration last
    _keep: bool = False  # sequences that need no peer, for the next registration
    _until_s: float = 0.0  # of the phase: the next `Alive`, or `Exit`, is due
    _reports: Reports = field(init=False)
    _watch: WriteWatch = field(init=False)
    _rates: LinkRates = field(init=False)
    _gateways: GatewayLinks = field(init=False)

    def __post_init__(self) -> None:
        self._gateways = GatewayLinks(self.info.name, self.state.streams)
        self.role = make_role(self.info.role, self.state)
        self._reset()

    @property
    def agent(self) -> str:
        """The name that peers write to."""
        return f"{self.info.name}:{self.info.incarnation}"

    @property
    def acknowledged(self) -> str:
        """The incarnation, if the router has acknowledged it and it is not being left; else empty."""
        return self.info.incarnation if self.phase is Phase.SERVING else ""

    @property
    def writes_in_flight(self) -> int:
        return len(self._watch)

    @property
    def expects_peers(self) -> bool:
        """Whether a peer's notice or the end of a write may come at any moment, so that the shell must poll often."""
        expects_notices = isinstance(self.role, HandoffTarget) and self.role.expects_notices
        return expects_notices or self.writes_in_flight > 0 or self.phase is Phase.LEAVING

    def reserved_pages(self, reservation_id: str) -> tuple[int, ...]:
        """Our pages that a peer writes for this reservation; empty if it is not open here."""
        return self.role.reserved_pages(reservation_id) if isinstance(self.role, HandoffTarget) else ()

    def wait_s(self, now: float) -> float:
        """Time until `tick` has something to do, if no message comes before."""
        own_s = self._reports.wait_s(now) if self.phase is Phase.SERVING else max(0.0, self._until_s - now)
        return min(own_s, self._gateways.wait_s(now))

    def on_transport(self, endpoint: Endpoint, now: float) -> None:
        """The transport is open under the name `agent`: register, with the sequences that are kept."""
        self.state = replace(self.state, agent=endpoint.agent)
        if self._keep:
            self.role.on_new_router(self.state)
        else:
            self.state.streams.forget_all()
            self.state.pool.release_all()
            self.role = make_role(self.role.name, self.state)
        self.info = replace(self.info, endpoint=endpoint)
        self._gateways.incarnation = self.info.incarnation
        self._reset()
        self.phase, self._until_s = Phase.REGISTERING, now + ALIVE_EVERY_S
        self.outbox = [Register(self.info, self.state.streams.held())]

    def _reset(self) -> None:
        self._reports = Reports(self.info.name, self.state)
        self._watch = WriteWatch(self.state.engine.write_stall_s)
        self._rates = LinkRates()

    def on_message(self, message: RouterMessage, now: float) -> list[SessionCommand]:
        """A message of the router. What was meant for an earlier incarnation changes nothing."""
        match message:
            case Reregister(incarnation, router_id):
                if incarnation == self.info.incarnation:
                    return self._leave(router_id != self._router_id, now)
            case RegisterAck(router_id, report_interval_s, incarnation):
                if incarnation == self.info.incarnation and self.phase in (Phase.REGISTERING, Phase.SERVING):
                    if self.phase is Phase.REGISTERING:
                        self._gateways.on_new_router()
                    self.phase, self._router_id = Phase.SERVING, router_id
                    self.outbox += [*self._reports.on_register_ack(report_interval_s), *self._gateways.unreachable()]
            case _ if self.phase is not Phase.SERVING:
                pass
            case GatewayJoined():
                return self._act(self._gateways.on_joined(message, now))
            case GatewayLeft():
                return self._act(self._gateways.on_left(message))
            case ResyncPages():
                self.outbox += self._reports.snapshot()
            case SwitchRole():
                self._switch(message)
            case PeerJoined(endpoint, host):
                self._rates.joined(endpoint.agent, host)
                return [Connect(endpoint)]
            case PeerLeft(agent):
                self._rates.left(agent)
                return [Disconnect(agent)]
            case _:
                return self._act(self.role.on_message(message, now))
        return []

    def on_router_link(self, up: bool, now: float) -> list[SessionCommand]:
        """The connection to the router is established, or has ended: messages in flight may be lost both ways."""
        return [] if up else self._leave(True, now)

    def on_link_full(self, now: float) -> list[SessionCommand]:
        """The router's link has taken none of the outbox. Its messages are lost: register with the present state."""
        return self._leave(True, now) if self.phase is Phase.SERVING else []

    def on_gateway_link(self, gateway: str, up: bool, now: float) -> list[SessionCommand]:
        """The connection to a gateway is established, or has ended; frames in flight may be lost."""
        return self._act(self._gateways.on_link(gateway, up, now))

    def on_gateway_message(self, gateway: str, message: AttachStreams, now: float) -> list[SessionCommand]:
        """A message of a gateway, in any phase."""
        return self._act(self._gateways.on_attach(gateway, message))

    def on_gateway_full(self, gateway: str, now: float) -> None:
        """The link to a gateway has not taken a frame. Its sequences keep decoding, and their tokens are sent later."""
        self._gateways.on_full(gateway, now)

    def on_notice(self, notice: HandoffNotice, wrong_pages: int, now: float) -> list[SessionCommand]:
        """A peer's notice; `wrong_pages` of its reservation have arrived corrupt."""
        if not isinstance(self.role, HandoffTarget):
            return []
        if wrong_pages:
            return self._act(self.role.on_corrupt(notice, wrong_pages))
        return self._act(self.role.on_notice(notice, now))

    def on_write_ended(self, outcome: WriteEnded, now: float) -> list[SessionCommand]:
        """The end of a write; each `WritePages` has exactly one."""
        agent = self._watch.ended(outcome.write_id)
        measured = None if outcome.error else self._rates.ended(agent, outcome.num_bytes, outcome.seconds)
        commands = self._act(self.role.on_write_ended(outcome, now))
        return commands if measured is None else [self._report_link(measured), *commands]

    def plan(self, now: float) -> tuple[list[SessionCommand], StepPlan | None]:
        """The next step, and the copies to perform before it (see `Role.plan`)."""
        if self.phase in (Phase.STARTING, Phase.LEAVING) and not self._keep:
            return [], None
        copies, plan = self.role.plan(now)
        return self._act(copies), plan

    def absorb(self, plan: StepPlan, result: StepResult, now: float) -> list[SessionCommand]:
        """The result of a planned step."""
        return self._act(self.role.absorb(plan, result, now))

    def on_step(self, sample: StepSample) -> None:
        """A measured step, for the next load report."""
        self._reports.on_step(sample)

    def tick(self, now: float, idle: bool) -> list[SessionCommand]:
        """What is due: stalled writes, a report, the next registration. `idle`: there is no step to run."""
        commands = self._act(self._gateways.tick(now))
        for agent in self._watch.look(now):
            given_up = self.role.on_stalled(agent, now)
            if given_up:
                commands.append(Log(f"writes to {agent} make no progress; going on without them"))
            commands += self._act(given_up)
        match self.phase:
            case Phase.SERVING:
                self.outbox += self._reports.due(self.role, now, idle)
            case Phase.REGISTERING if now >= self._until_s and not self.outbox:
                self.outbox, self._until_s = [Alive()], now + ALIVE_EVERY_S
            case Phase.LEAVING if not self.writes_in_flight:
                self.phase = Phase.STARTING
                self.info = replace(self.info, incarnation=self.new_incarnation())
                commands.append(NewTransport(self.agent))
            case Phase.LEAVING if now > self._until_s:
                commands.append(Exit(f"{self.info.name} cannot re-register: writes to peers do not end."))
        return commands

    def _leave(self, keep: bool, now: float) -> list[SessionCommand]:
        """Start no more writes, send no more messages, and register again once no write is in flight.

        `keep`: the router is another one, or only the connection broke; else our requests were re-assigned.
        """
        if self.phase not in (Phase.REGISTERING, Phase.SERVING):
            return []
        self.phase, self._keep, self._until_s = Phase.LEAVING, keep, now + FINISH_WRITES_S
        self.role.call_off_handoffs()
        self.outbox.clear()
        what = "keeping its sequences" if keep else "discarding all sequences"
        return [Log(f"incarnation {self.info.incarnation} has lost its router; re-registering, {what}")]

    def _switch(self, order: SwitchRole) -> None:
        self.role, self.state, answer = switch_role(self.role, self.state, order)
        self.info = replace(self.info, role=self.role.name, role_epoch=self.state.role_epoch)
        self._reports.on_role_changed(self.state)
        self.outbox.append(answer)

    def _report_link(self, measured: LinkMeasured) -> Log:
        if self.phase is Phase.SERVING:
            self.outbox.append(measured)
        return Log(*self._rates.sentence(self.info, measured))

    def _act(self, commands: Iterable[Command | LinkCommand]) -> list[SessionCommand]:
        """Queue the role's messages and count its writes; returns what the shell must perform."""
        performed: list[SessionCommand] = []
        for command in commands:
            if not isinstance(command, Send):
                performed.append(command)
                if isinstance(command, WritePages):
                    num_bytes = len(command.source_pages) * self.info.page_bytes
                    self._watch.began(command.write_id, command.agent, num_bytes)
            elif self.phase is Phase.SERVING:
                self.outbox.append(command.message)
        return performed
