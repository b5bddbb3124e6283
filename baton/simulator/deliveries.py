"""What can happen between the router, the workers and the network, one thing at a time.

Each link (a worker's inbox, its outbox, its peers' notices) is a queue: messages keep their order, as TCP keeps it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from baton.protocol.messages import HandoffStalled, RouterMessage, SendPages, WorkerMessage
from baton.router.core.commands import Command, FinishStream, Kill, SendToWorker, StreamTokens
from baton.router.core.core import RouterCore
from baton.router.core.worker_frames import WorkerFrames
from baton.simulator.events import Events
from baton.simulator.page_network import PageNetwork, PageWrite
from baton.simulator.token_checker import VOCAB, Clients, Violation
from baton.simulator.virtual_worker import CONTEXT_TOKENS, VirtualWorker
from baton.worker.core.role import SwapIn, SwapOut, WriteEnded, WritePages
from baton.worker.session import Connect, Disconnect, Exit, NewTransport, SessionCommand

FRAMES = WorkerFrames("model", VOCAB, CONTEXT_TOKENS)


@dataclass(eq=False)
class Deliveries:
    """The parts of a cluster, and their shells."""

    rng: random.Random
    core: RouterCore = field(init=False)
    workers: dict[str, VirtualWorker] = field(init=False, default_factory=dict)
    network: PageNetwork = field(init=False)
    clients: Clients = field(init=False, default_factory=Clients)
    events: Events = field(init=False, default_factory=Events)  # the clock, and what happens at a given time
    split: bool = field(default=False, kw_only=True)  # a write may end, a notice come, during a step
    duplicates: float = field(default=0.0, kw_only=True)  # share of messages that arrive twice
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

    def possible(self, worker: VirtualWorker) -> dict[str, Callable[[VirtualWorker], bool]]:
        """What can happen next at the worker, by link. An action returns whether anything happened."""
        if worker.silent:
            return {}
        if worker.leaving:
            return {"session": self.reregister}
        stepping = worker.stepping is not None
        actions: dict[str, Callable[[VirtualWorker], bool]] = {}
        if worker.inbox and not stepping:
            actions["inbox"] = self.deliver
        if worker.outbox:
            actions["outbox"] = self.receive
        if worker.notices:
            actions["notices"] = self.notify
        actions["step"] = self.absorb_step if stepping else self.run_step
        return actions

    def next_of(self, write: PageWrite) -> Callable[[PageWrite], bool] | None:
        """What can happen next to a write."""
        if self.network.is_cut(write):
            return None
        if write.called_off:
            return self.arrive_late
        if not write.source.silent:
            return self.finish_write
        return None if write.landed else self.land_write

    def deliver(self, worker: VirtualWorker) -> bool:
        """The router's next message reaches the worker."""
        message = worker.inbox.popleft()
        self.to_worker(worker, message)
        if self.duplicates and self.rng.random() < self.duplicates:
            self.to_worker(worker, message)
        return True

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
        message = worker.outbox.pop(0)
        self.to_router(worker, [message])
        if self.duplicates and self.rng.random() < self.duplicates:
            self.to_router(worker, [message])
        return True

    def to_router(self, worker: VirtualWorker, messages: Seq[WorkerMessage]) -> None:
        """The router handles messages of the worker; those of a worker of ours are never refused."""
        if messages:
            incarnation = str(worker.incarnation)
            FRAMES.check(worker.name, incarnation, messages, self.core.state)
            self.stalled |= {one.reservation_id for one in messages if isinstance(one, HandoffStalled)}
            self.perform(self.core.on_frame(worker.name, incarnation, messages, self.now))

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
        worker.idle = plan is None and not copies
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
        if worker.session.writes_in_flight:
            return False
        while worker.notices:
            self.notify(worker)
        self.tick_worker(worker)
        return True

    def arrive_late(self, write: PageWrite) -> bool:
        """What remains of a write that was called off."""
        self.network.arrive_late(write)
        return True

    def land_write(self, write: PageWrite) -> bool:
        """The bytes arrive while the source is silent."""
        return not self.network.land(write)

    def finish_write(self, write: PageWrite) -> bool:
        """The write is over, and its source sees that."""
        for ended, error in self.network.finish(write):
            self._end(ended, error)
        return True

    def _end(self, write: PageWrite, error: str) -> None:
        outcome = WriteEnded(write.command.write_id, 16 * len(write.command.source_pages), 0.001, error)
        self.perform_for(write.source, write.source.session.on_write_ended(outcome, self.now))

    def perform_for(self, worker: VirtualWorker, commands: Seq[SessionCommand]) -> None:
        """What the worker's session asks of its shell."""
        worker.idle, worker.changed = False, True
        for command in commands:
            match command:
                case WritePages():
                    self.network.writes.append(PageWrite(worker, command))
                case SwapOut() | SwapIn():
                    worker.copy(command)
                case Connect(endpoint):
                    worker.peers.add(endpoint.agent)
                case Disconnect(agent):
                    worker.peers.discard(agent)
                    for write in self.network.disconnect(worker, agent):
                        self._end(write, "peer left")
                case NewTransport(agent):
                    self.network.close(worker)
                    worker.new_transport()
                    endpoint = replace(worker.session.info.endpoint, agent=agent)
                    worker.session.on_transport(endpoint, self.now)
                case Exit(reason):
                    self.exits(worker, reason)

    def exits(self, worker: VirtualWorker, reason: str) -> None:
        """The worker ends its process."""
        raise Violation(reason)

    def perform(self, commands: Seq[Command]) -> None:
        """What the router's core asks of its shell."""
        for command in commands:
            match command:
                case SendToWorker(name, message):
                    if (worker := self.workers.get(name)) is not None:
                        worker.inbox.append(message)
                        worker.changed = True
                case StreamTokens(request_id, tokens):
                    self.clients.on_tokens(request_id, tokens, self.now)
                case Kill(name):
                    self.to_kill.append(name)
                case FinishStream(completion):
                    self.clients.on_end(completion)
