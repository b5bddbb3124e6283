"""What can happen between the router, the gateways, the workers and the network, one thing at a time."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from baton.gateway.core import commands as gateway_commands
from baton.protocol.gateway_messages import AttachStreams
from baton.protocol.messages import HandoffStalled, RouterMessage, SendPages, WorkerMessage
from baton.router.core.commands import Command, Kill, SendToGateway, SendToWorker
from baton.router.core.core import RouterCore
from baton.router.core.peer_frames import PeerFrames
from baton.simulator.clients import Clients
from baton.simulator.links import Link, LinkChanged, Wire
from baton.simulator.virtual_gateway import VirtualGateway
from baton.simulator.virtual_worker import CONTEXT_TOKENS, VirtualWorker
from baton.simulator.worker_shells import WorkerShells, incarnation_of

FRAMES = PeerFrames("model", CONTEXT_TOKENS)


@dataclass(eq=False)
class RouterEnd:
    """The router's end of its links."""

    blocked: bool = False
    gone: bool = False  # its process has ended, and the next one is not up


@dataclass(eq=False)
class Deliveries(WorkerShells):
    """The parts of a cluster, and their shells."""

    core: RouterCore = field(init=False)
    router: RouterEnd = field(init=False, default_factory=RouterEnd)
    clients: Clients = field(init=False, default_factory=Clients)
    duplicates: float = field(default=0.0, kw_only=True)  # share of deliveries that arrive twice
    to_kill: list[str] = field(init=False, default_factory=list)  # workers whose end the router has ordered
    stalled: set[str] = field(init=False, default_factory=set)  # reservations reported to the router

    def deliver(self, wire: Wire, count: int = 1) -> bool:
        """The next items of a wire reach its end."""
        if not (count := min(count, wire.ready)):
            return False
        items = wire.take(count)
        if self.duplicates and not wire.once:
            items = [again for item in items for again in [item] * self._times(item)]
        wire.handle(items)
        return True

    def _times(self, item: Any) -> int:
        """How many times an item arrives."""
        return 2 if not isinstance(item, LinkChanged) and self.rng.random() < self.duplicates else 1

    # Between workers and the router

    def link_to_router(self, worker: VirtualWorker) -> None:
        """Connect a worker with the router."""
        at_worker, at_router = partial(self._at_worker, worker), partial(self._at_router, worker)
        worker.link = Link.between(worker, self.router, at_worker, at_router)
        worker.link.up = not self.router.gone

    def _at_worker(self, worker: VirtualWorker, items: list[Any]) -> None:
        for item in items:
            if isinstance(item, LinkChanged):
                self.perform_for(worker, worker.session.on_router_link(item.up, self.now))
            else:
                self.to_worker(worker, item)

    def _at_router(self, worker: VirtualWorker, items: list[Any]) -> None:
        for incarnation, sent in groupby(items, incarnation_of):
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
            FRAMES.check(worker.name, incarnation, messages, self.core.state, self.core.gateways.by_name)
            self.stalled |= {one.reservation_id for one in messages if isinstance(one, HandoffStalled)}
            self.perform(self.core.on_frame(worker.name, incarnation, messages, self.now))

    # Between workers and gateways

    def at_gateway(self, gateway: VirtualGateway, worker: VirtualWorker, items: list[Any]) -> None:
        """A worker's messages reach a gateway."""
        for incarnation, sent in groupby(items, incarnation_of):
            batch = [message for _, message in sent]
            commands = gateway.session.on_worker_messages(worker.name, incarnation, batch, self.now)
            self.perform_at(gateway, commands)

    # Between gateways and the router

    def link_gateway(self, gateway: VirtualGateway) -> None:
        """Connect a gateway with the router."""
        at_gateway, at_router = partial(self._to_gateway, gateway), partial(self._from_gateway_at_router, gateway)
        gateway.link = Link.between(gateway, self.router, at_gateway, at_router)
        gateway.link.out.once = gateway.link.back.once = True
        if not self.router.gone:
            self.connect(gateway.link)

    def _to_gateway(self, gateway: VirtualGateway, items: list[Any]) -> None:
        for item in items:
            if isinstance(item, LinkChanged):
                self.perform_at(gateway, gateway.session.on_router_link(item.up, self.now))
            else:
                self.perform_at(gateway, gateway.session.on_router_message(item, self.now))

    def _from_gateway_at_router(self, gateway: VirtualGateway, items: list[Any]) -> None:
        for incarnation, sent in groupby(items, incarnation_of):
            batch = [message for _, message in sent]
            FRAMES.check(gateway.name, incarnation, batch, self.core.state, self.core.gateways.by_name)
            self.perform(self.core.on_frame(gateway.name, incarnation, batch, self.now))

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
