"""The shells of the workers of a virtual cluster: steps, writes, notices, and what their sessions ask for."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any

from baton.protocol.gateway_messages import TokenMessage
from baton.protocol.head_slices import Piece
from baton.protocol.session_messages import GatewayJoined
from baton.protocol.worker import Endpoint
from baton.simulator.events import Events
from baton.simulator.links import Link, LinkChanged, Wire
from baton.simulator.network import rank_pairs
from baton.simulator.page_network import PageNetwork, PageWrite
from baton.simulator.token_checker import Violation
from baton.simulator.virtual_gateway import VirtualGateway
from baton.simulator.virtual_worker import GatewayLink, RankPair, VirtualWorker
from baton.worker.core.role import SendToGateway, SwapIn, SwapOut, WriteEnded, WritePages
from baton.worker.core.session_commands import (
    Connect,
    ConnectGateway,
    Disconnect,
    DisconnectGateway,
    Exit,
    NewTransport,
    SessionCommand,
)

MOST_QUEUED = 32  # messages that a link to a gateway holds
LEADERS: RankPair = 0, Piece(0, 0, 0, 0)
"""Between ranks 0, without a part of any page: what a notice alone is sent with."""
incarnation_of = itemgetter(0)
"""The incarnation beside a message of a link's client."""


@dataclass(eq=False)
class WorkerShells:
    """Workers, what is between them, and their links to gateways."""

    rng: random.Random
    workers: dict[str, VirtualWorker] = field(init=False, default_factory=dict)
    gateways: dict[str, VirtualGateway] = field(init=False, default_factory=dict)
    network: PageNetwork = field(init=False)
    events: Events = field(init=False, default_factory=Events)  # the clock, and what happens at a given time
    cut: set[frozenset[str]] = field(init=False, default_factory=set)  # pairs of processes whose link carries nothing
    split: bool = field(default=False, kw_only=True)  # a write may end, a notice come, during a step

    def __post_init__(self) -> None:
        self.network = PageNetwork(self.rng, self.workers)

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self.events.now

    @now.setter
    def now(self, moment_s: float) -> None:
        self.events.now = moment_s

    def on_sent(self, wire: Wire) -> None:
        """A wire has another item."""

    def on_acted(self, worker: VirtualWorker) -> None:
        """Something has happened at a worker."""

    def on_opening(self, worker: VirtualWorker) -> None:
        """A worker opens its next transport."""

    def on_write(self, write: PageWrite) -> None:
        """A write has begun, or something about it has changed."""

    def notify(self, worker: VirtualWorker) -> bool:
        """The worker handles a peer's next notice, whose pages may be corrupt."""
        notice = worker.notices.popleft()
        corrupt = notice.reservation_id in self.network.corrupted
        pages = worker.session.reserved_pages(notice.reservation_id) if corrupt else ()
        worker.memory.corrupt(pages, self.rng.randrange(worker.memory.num_heads) if corrupt else 0)
        self.perform_for(worker, worker.session.on_notice(notice, len(pages), self.now))
        return True

    def run_step(self, worker: VirtualWorker) -> bool:
        """The worker computes a step, if it has one; `split`: without absorbing it."""
        copies, plan = worker.session.plan(self.now)
        self._perform_any(worker, copies)
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

    def tick_worker(self, worker: VirtualWorker, idle: bool = True) -> None:
        """The worker does what is due; `idle`: it has no step to run."""
        if worker.stepping is None:
            self._perform_any(worker, worker.session.tick(self.now, idle))

    def reregister(self, worker: VirtualWorker) -> bool:
        """The worker leaves its incarnation, once its own writes have ended."""
        if worker.session.writes_in_flight or worker.stepping is not None:
            return False
        while worker.notices:
            self.notify(worker)
        self.tick_worker(worker)
        return True

    def open_transport(self, worker: VirtualWorker) -> bool:
        """The worker's next transport is open."""
        if not worker.opening or worker.stepping is not None:
            return False
        endpoint = replace(worker.session.info.endpoint, agent=worker.opening)
        worker.opening = ""
        worker.session.on_transport(endpoint, self.now)
        self.perform_for(worker, [])
        return True

    def perform_for(self, worker: VirtualWorker, commands: Seq[SessionCommand]) -> None:
        """What the worker's session asks of its shell, and what it sends."""
        for command in commands:
            match command:
                case SendToGateway(gateway, message):
                    self._send_tokens(worker, gateway, message)
                case WritePages():
                    self._write(worker, command)
                case SwapOut() | SwapIn():
                    worker.copy(command)
                case Connect(endpoint):
                    self._connect_peer(worker, endpoint)
                case Disconnect(agent):
                    worker.peers.pop(agent, None)
                    for write in self.network.disconnect(worker, agent):
                        self._end(write, "peer left")
                case ConnectGateway(joined):
                    self._connect_gateway(worker, joined)
                case DisconnectGateway(gateway):
                    self._disconnect_gateway(worker, gateway)
                case NewTransport(agent):
                    self.network.close(worker)
                    worker.new_transport()
                    worker.opening = agent
                    self.on_opening(worker)
                case Exit(reason):
                    self.exits(worker, reason)
        self._flush(worker)
        self.on_acted(worker)

    def _perform_any(self, worker: VirtualWorker, commands: Seq[SessionCommand]) -> None:
        """Commands and messages that there may be."""
        if commands or worker.session.outbox:
            self.perform_for(worker, commands)

    def _flush(self, worker: VirtualWorker) -> None:
        """Send what the session has for the router."""
        session = worker.session
        if session.outbox:
            incarnation, wire = session.info.incarnation, worker.link.out
            wire.queue.extend([(incarnation, message) for message in session.outbox])
            session.outbox = []
            self.on_sent(wire)

    def _send_tokens(self, worker: VirtualWorker, name: str, message: TokenMessage) -> None:
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
        source = write.source
        if self.network.is_cut(write) or (write.rank in source.dead_ranks and not source.gone):
            return False
        if write.called_off:
            self.network.arrive_late(write)
            return True
        if not write.source.silent and write.rank not in write.source.stopped_ranks:
            for ended, error in self.network.finish(write):
                self._end(ended, error)
            return True
        return not write.landed and not self.network.land(write)

    def _connect_peer(self, worker: VirtualWorker, endpoint: Endpoint) -> None:
        worker.peers[endpoint.agent] = len(endpoint.ranks)
        worker.broken = {one for one in worker.broken if one[0] != endpoint.agent}

    def _write(self, worker: VirtualWorker, command: WritePages) -> None:
        """Post a write for each pair of ranks. One that has no pages is a notice between the ranks 0."""
        num_heads = worker.session.info.endpoint.layout.num_kv_heads
        pairs = rank_pairs(num_heads, worker.num_ranks, worker.peers.get(command.agent, 1))
        if len(pairs) == 1 or not command.source_pages:
            self._post(PageWrite(worker, command, pairs[0] if command.source_pages else LEADERS))
            return
        part = worker.rank_writes.start(command, pairs)
        for pair in pairs:
            self._post(PageWrite(worker, part, pair, whole=False))

    def _post(self, write: PageWrite) -> None:
        self.network.writes.append(write)
        self.on_write(write)

    def _end(self, write: PageWrite, error: str) -> None:
        """The source's rank has seen the end of a write, which may be that of a command of its session."""
        worker, writes = write.source, write.source.rank_writes
        ended = WriteEnded(write.command.write_id, write.num_bytes, 0.001, error)
        next_: WritePages | WriteEnded | None = ended
        if not write.whole:
            notified = writes.awaits_notice(ended.write_id)
            next_ = writes.on_notice_ended(ended) if notified else writes.on_part_ended(write.pair, ended)
        match next_:
            case WritePages() as notice:
                self._post(PageWrite(worker, notice, LEADERS, whole=False))
            case WriteEnded() as whole:
                self.perform_for(worker, worker.session.on_write_ended(whole, self.now))

    # Links to gateways

    def _connect_gateway(self, worker: VirtualWorker, joined: GatewayJoined) -> None:
        self._disconnect_gateway(worker, joined.gateway)
        gateway = self.gateways.get(joined.gateway)
        if gateway is not None and gateway.address == joined.address:
            at_worker = partial(self._from_gateway, worker, joined.gateway)
            link = Link.between(worker, gateway, at_worker, partial(self.at_gateway, gateway, worker))
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

    def at_gateway(self, gateway: VirtualGateway, worker: VirtualWorker, items: list[Any]) -> None:
        """A worker's messages reach a gateway."""
        raise NotImplementedError
