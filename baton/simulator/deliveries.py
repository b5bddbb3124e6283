"""What can happen between the router, the gateways, the workers and the network, one thing at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

from baton.gateway.core import commands as gateway_commands
from baton.protocol.gateway_messages import AttachStreams
from baton.protocol.messages import GatewayJoined, HandoffStalled, Reregister, RouterMessage, SendPages, WorkerMessage
from baton.router.core.commands import Command, Kill, SendToGateway, SendToWorker
from baton.router.core.core import RouterCore
from baton.router.core.worker_frames import WorkerFrames
from baton.simulator.clients import Clients
from baton.simulator.events import Events
from baton.simulator.links import Link, LinkChanged, Wire
from baton.simulator.page_network import PageNetwork, PageWrite
from baton.simulator.token_checker import VOCAB, Violation
from baton.simulator.virtual_gateway import VirtualGateway
from baton.simulator.virtual_worker import CONTEXT_TOKENS, GatewayLink, VirtualWorker
from baton.worker.core import role as worker_commands
from baton.worker.core.gateway_links import ConnectGateway, DisconnectGateway
from baton.worker.core.role import SwapIn, SwapOut, WriteEnded, WritePages
from baton.worker.session import Connect, Disconnect, Exit, NewTransport, SessionCommand

FRAMES = WorkerFrames("model", VOCAB, CONTEXT_TOKENS)
MOST_QUEUED = 32  # messages that a link to a gateway holds
_incarnation = itemgetter(0)


@dataclass(eq=False)
class RouterEnd:
    """The router's end of its links."""

    blocked: bool = False


@dataclass(eq=False)
class Deliveries:
    """The parts of a cluster, and their shells."""

    rng: random.Random
    core: RouterCore = field(init=False)
    router: RouterEnd = field(init=False, default_factory=RouterEnd)
    workers: dict[str, VirtualWorker] = field(init=False, default_factory=dict)
    gateways: dict[str, VirtualGateway] = field(init=False, default_factory=dict)
    network: PageNetwork = field(init=False)
    clients: Clients = field(init=False, default_factory=Clients)
    events: Events = field(init=False, default_factory=Events)  # the clock, and what happens at a given time
    split: bool = field(default=False, kw_only=True)  # a write may end, a notice come, during a step
    duplicates: float = field(default=0.0, kw_only=True)  # share of deliveries that arrive twice
    cut: set[frozenset[str]] = field(init=False, default_factory=set)  # pairs of processes whose link carries nothing
    to_kill: list[str] = field(init=False, default_factory=list)  # workers whose end the router has ordered
    stalled: set[str] = field(init=False, default_factory=set)  # reservations that the router was told of

    def __post_init__(self) -> None:
        self.network = PageNetwork(self.rng, self.workers)

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self.events.now

    @now.setter
    def now(self, moment_s: float) -> None:
        self.events.now = moment_s

    def deliver(self, wire: Wire, count: int = 1) -> bool:
        """The next items of a wire reach its end."""
        if not (count := min(count, wire.ready)):
            return False
        items = wire.take(count)
        wire.handle(items)
        if self.duplicates and self.rng.random() < self.duplicates:
            wire.handle([item for item in items if not isinstance(item, LinkChanged)])
        return True

    def on_sent(self, wire: Wire) -> None:
        """A wire has another item."""

    def on_acted(self, worker: VirtualWorker) -> None:
        """Something has happened at a worker."""

    def on_write(self, write: PageWrite) -> None:
        """A write has begun, or something about it has changed."""

    # Between workers and the router

    def link_to_router(self, worker: VirtualWorker) -> None:
        """Connect a worker with the router."""
        at_worker, at_router = partial(self._at_worker, worker), partial(self._at_router, worker)
        worker.link = Link.between(worker, self.router, at_worker, at_router)
        worker.link.up = True

    def _at_worker(self, worker: VirtualWorker, items: list[Any]) -> None:
        for item in items:
            if not isinstance(item, LinkChanged):
                self.to_worker(worker, item)
            elif item.up:  # it was broken
                self.to_worker(worker, Reregister(str(worker.incarnation), ""))

    def _at_router(self, worker: VirtualWorker, items: list[Any]) -> None:
        for incarnation, sent in groupby(items, _incarnation):
            self.to_router(worker, [message for _, message in sent], incarnation)

    def to_worker(self, worker: VirtualWorker, message: RouterMessage) -> None:
        """The worker handles a message of the router."""
        if isinstance(message, SendPages) and worker.serving:
            reservation = message.reservation
            for page, generation in zip(reservation.page_ids, reservation.generations, strict=True):
                worker.granted[reservation.agent, page] = generation
                worker.granted_by[reservation.agent, page] = reservation.reservation_id
        self.perform_for(worker, worker.session.on_message(message, self.now))

    def receive(self, worker: VirtualWorker) -> bool:
        """The worker's next message reaches the router."""
        return self.deliver(worker.link.out)

    def to_router(self, worker: VirtualWorker, messages: Seq[WorkerMessage], incarnation: str = "") -> None:
        """The router handles messages of the worker; those of a worker of ours are never refused."""
        if messages:
            incarnation = incarnation or str(worker.incarnation)
            FRAMES.check(worker.name, incarnation, messages, self.core.state)
            self.stalled |= {one.reservation_id for one in messages if isinstance(one, HandoffStalled)}
            self.perform(self.core.on_frame(worker.name, incarnation, messages, self.now))

    # Between workers and gateways

    def _connect_gateway(self, worker: VirtualWorker, joined: GatewayJoined) -> None:
        self._disconnect_gateway(worker, joined.gateway)
        gateway = self.gateways.get(joined.gateway)
        if gateway is not None and gateway.address == joined.address:
            at_worker = partial(self._from_gateway, worker, joined.gateway)
            link = Link.between(worker, gateway, at_worker, partial(self._at_gateway, gateway, worker))
            worker.gateways[joined.gateway] = GatewayLink(link, joined.address)
            self.connect_tokens(worker, gateway)

    def _disconnect_gateway(self, worker: VirtualWorker, name: str) -> None:
        if (former := worker.gateways.pop(name, None)) is not None:
            former.link.end(self.rng)

    def connect_tokens(self, worker: VirtualWorker, gateway: VirtualGateway) -> None:
        """Connect a worker with a gateway, if both want it and nothing is in the way."""
        ours = worker.gateways.get(gateway.name)
        if ours is None or ours.link.out.receiver is not gateway or gateway.gone or worker.gone:
            return
        if worker.name in gateway.workers and frozenset((worker.name, gateway.name)) not in self.cut:
            self.connect(ours.link)

    def connect(self, link: Link) -> None:
        """A connection comes up; what has waited for it goes on."""
        if link.connect():
            self.on_sent(link.back)
            self.on_sent(link.out)

    def disconnect(self, link: Link) -> None:
        """A connection breaks."""
        if link.disconnect(self.rng):
            self.on_sent(link.back)

    def _from_gateway(self, worker: VirtualWorker, gateway: str, items: list[Any]) -> None:
        for item in items:
            if isinstance(item, LinkChanged):
                self.perform_for(worker, worker.session.on_gateway_link(gateway, item.up, self.now))
            else:
                self.perform_for(worker, worker.session.on_gateway_message(gateway, item, self.now))

    def _at_gateway(self, gateway: VirtualGateway, worker: VirtualWorker, items: list[Any]) -> None:
        for incarnation, sent in groupby(items, _incarnation):
            batch = [message for _, message in sent]
            commands = gateway.session.on_worker_messages(worker.name, incarnation, batch, self.now)
            self.perform_at(gateway, commands)

    # Between gateways and the router

    def link_gateway(self, gateway: VirtualGateway) -> None:
        """Connect a gateway with the router."""
        at_gateway, at_router = partial(self._to_gateway, gateway), partial(self._from_gateway_at_router, gateway)
        gateway.link = Link.between(gateway, self.router, at_gateway, at_router)
        self.connect(gateway.link)

    def _to_gateway(self, gateway: VirtualGateway, items: list[Any]) -> None:
        for item in items:
            if isinstance(item, LinkChanged):
                self.perform_at(gateway, gateway.session.on_router_link(item.up, self.now))
            else:
                self.perform_at(gateway, gateway.session.on_router_message(item, self.now))

    def _from_gateway_at_router(self, gateway: VirtualGateway, items: list[Any]) -> None:
        for incarnation, sent in groupby(items, _incarnation):
            batch = [message for _, message in sent]
            self.perform(self.core.on_frame(gateway.name, incarnation, batch, self.now))

    # At a worker

    def notify(self, worker: VirtualWorker) -> bool:
        """The worker handles a peer's next notice, whose pages may be corrupt."""
        notice = worker.notices.popleft()
        corrupt = notice.reservation_id in self.network.corrupted
        pages = worker.session.reserved_pages(notice.reservation_id) if corrupt else ()
        worker.memory.corrupt(pages)
        self.perform_for(worker, worker.session.on_notice(notice, len(pages), self.now))
        return True

    def run_step(self, worker: VirtualWorker) -> bool:
        """The worker computes a step, if it has one; `split`: without absorbing it."""
        copies, plan = worker.session.plan(self.now)
        self.perform_for(worker, copies)
        if plan is None:
            return bool(copies)
        worker.stepping = (plan, worker.execute(plan))
        if not self.split:
            self.absorb_step(worker)
        return True

    def absorb_step(self, worker: VirtualWorker) -> bool:
        """The worker absorbs the step that it has computed."""
        if worker.stepping is None:
            return False
        (plan, result), worker.stepping = worker.stepping, None
        self.perform_for(worker, worker.session.absorb(plan, result, self.now))
        return True

    def tick_worker(self, worker: VirtualWorker) -> None:
        """The worker does what is due."""
        if worker.stepping is None:
            self.perform_for(worker, worker.session.tick(self.now, idle=True))

    def reregister(self, worker: VirtualWorker) -> bool:
        """The worker leaves its incarnation, once its own writes have ended."""
        if worker.session.writes_in_flight or worker.stepping is not None:
            return False
        while worker.notices:
            self.notify(worker)
        self.tick_worker(worker)
        return True

    def perform_for(self, worker: VirtualWorker, commands: Seq[SessionCommand]) -> None:
        """What the worker's session asks of its shell, and what it sends."""
        for command in commands:
            match command:
                case worker_commands.SendToGateway(gateway, message):
                    self._send_tokens(worker, gateway, message)
                case WritePages():
                    self.network.writes.append(write := PageWrite(worker, command))
                    self.on_write(write)
                case SwapOut() | SwapIn():
                    worker.copy(command)
                case Connect(endpoint):
                    worker.peers.add(endpoint.agent)
                case Disconnect(agent):
                    worker.peers.discard(agent)
                    for write in self.network.disconnect(worker, agent):
                        self._end(write, "peer left")
                case ConnectGateway(joined):
                    self._connect_gateway(worker, joined)
                case DisconnectGateway(gateway):
                    self._disconnect_gateway(worker, gateway)
                case NewTransport(agent):
                    self.network.close(worker)
                    worker.new_transport()
                    endpoint = replace(worker.session.info.endpoint, agent=agent)
                    worker.session.on_transport(endpoint, self.now)
                case Exit(reason):
                    self.exits(worker, reason)
        self._flush(worker)
        self.on_acted(worker)

    def _flush(self, worker: VirtualWorker) -> None:
        """Send what the session has for the router."""
        session = worker.session
        if session.outbox:
            incarnation, wire = session.info.incarnation, worker.link.out
            wire.queue.extend([(incarnation, message) for message in session.outbox])
            session.outbox = []
            self.on_sent(wire)

    def _send_tokens(self, worker: VirtualWorker, name: str, message: Any) -> None:
        if (ours := worker.gateways.get(name)) is None:
            return
        if len(ours.link.out.queue) >= MOST_QUEUED:
            worker.session.on_gateway_full(name, self.now)
            return
        ours.link.out.queue.append((worker.session.info.incarnation, message))
        self.on_sent(ours.link.out)

    def exits(self, worker: VirtualWorker, reason: str) -> None:
        """The worker ends its process."""
        raise Violation(reason)

    # Writes

    def write_on(self, write: PageWrite) -> bool:
        """What can happen next to a write happens; False if nothing can."""
        if self.network.is_cut(write):
            return False
        if write.called_off:
            self.network.arrive_late(write)
            return True
        if not write.source.silent:
            for ended, error in self.network.finish(write):
                self._end(ended, error)
            return True
        return not write.landed and not self.network.land(write)

    def _end(self, write: PageWrite, error: str) -> None:
        outcome = WriteEnded(write.command.write_id, 16 * len(write.command.source_pages), 0.001, error)
        self.perform_for(write.source, write.source.session.on_write_ended(outcome, self.now))

    # At the router, and at a gateway

    def perform(self, commands: Seq[Command]) -> None:
        """What the router's core asks of its shell."""
        for command in commands:
            match command:
                case SendToWorker(name, message):
                    if (worker := self.workers.get(name)) is not None:
                        self._send_back(worker.link, message)
                case SendToGateway(name, message):
                    if (gateway := self.gateways.get(name)) is not None:
                        self._send_back(gateway.link, message)
                case Kill(name):
                    self.to_kill.append(name)

    def _send_back(self, link: Link, message: Any) -> None:
        if link.up:
            link.back.queue.append(message)
            self.on_sent(link.back)

    def perform_at(self, gateway: VirtualGateway, commands: Seq[gateway_commands.Command]) -> None:
        """What a gateway's session asks of its shell."""
        for command in commands:
            match command:
                case gateway_commands.ShowTokens(request_id, tokens):
                    self.clients.on_tokens(gateway, request_id, tokens, self.now)
                case gateway_commands.EndStream(end):
                    self.clients.on_end(gateway, end)
                case gateway_commands.SendToRouter(message):
                    gateway.link.out.queue.append((gateway.incarnation, message))
                    self.on_sent(gateway.link.out)
                case gateway_commands.SendToWorker(name, message):
                    self._ask_worker(gateway, name, message)
                case gateway_commands.AcceptWorker(name):
                    gateway.workers.add(name)
                    if (worker := self.workers.get(name)) is not None:
                        self.connect_tokens(worker, gateway)
                case gateway_commands.ForgetWorker(name):
                    gateway.workers.discard(name)
                    if (ours := self._tokens_link(name, gateway)) is not None:
                        self.disconnect(ours)

    def _ask_worker(self, gateway: VirtualGateway, name: str, message: AttachStreams) -> None:
        if (link := self._tokens_link(name, gateway)) is not None:
            self._send_back(link, message)

    def _tokens_link(self, name: str, gateway: VirtualGateway) -> Link | None:
        worker = self.workers.get(name)
        ours = None if worker is None else worker.gateways.get(gateway.name)
        return ours.link if ours is not None and ours.link.out.receiver is gateway else None
