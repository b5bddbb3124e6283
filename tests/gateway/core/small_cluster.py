"""A gateway's surroundings, small: a router, two workers and clients that check every token and every end.

A token is a function of its request and its index. Messages wait on their links until a test delivers or loses them;
the router and the workers follow `proto/baton/v1/worker.proto` and no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from baton.gateway.core.commands import (
    AcceptWorker,
    Command,
    EndStream,
    ForgetWorker,
    SendToRouter,
    SendToWorker,
    ShowTokens,
)
from baton.gateway.core.live_stream import ModelFacts, taken_over
from baton.gateway.core.session import GatewaySession
from baton.protocol.errors import Cancelled
from baton.protocol.gateway_messages import (
    GatewayInfo,
    LinkUp,
    StepOutput,
)
from baton.protocol.request import Request
from tests.gateway.core.clients import Reader, tokens_of
from tests.gateway.core.small_router import WORKERS, SmallRouter
from tests.gateway.core.small_worker import Worker
from tests.plain_vocabulary import BYTES

GRACE_S = 10.0
INFO = GatewayInfo("g", "1", "tcp://g")
MODEL = ModelFacts("m", 4, 256)


@dataclass(eq=False)
class SmallCluster:
    """Drives one session. `readers` are the open streams, `gone` those that have ended."""

    now: float = 100.0
    router_up: bool = False  # The connection, as the gateway sees it
    workers: dict[str, Worker] = field(default_factory=lambda: {name: Worker() for name in WORKERS})
    readers: dict[str, Reader] = field(default_factory=dict)
    gone: list[Reader] = field(default_factory=list)
    router: SmallRouter = field(init=False)
    session: GatewaySession = field(init=False)

    def __post_init__(self) -> None:
        self.router = SmallRouter(self.workers)
        self.session = GatewaySession(INFO, MODEL, BYTES, GRACE_S)

    # Clients

    def open(self, asked: Request, resume_from: int = 0, with_ids: bool = False) -> None:
        """A client sends a request, or resumes; an earlier reader of its stream is ended. Raises what `open` does."""
        emitted = tokens_of(asked)[:resume_from] if with_ids else []
        commands = self.session.open(asked, self.now, emitted, resume_from)
        earlier = self.readers.get(asked.request_id)
        if earlier is not None:
            assert isinstance(taken_over(asked.request_id), Cancelled)
            self.gone.append(earlier)
        reader = self.readers[asked.request_id] = Reader(asked, resume_from, resume_from)
        self.perform(commands)
        reader.first_index = reader.next_index

    def leave(self, request_id: str) -> None:
        """A client disconnects."""
        self.gone.append(self.readers.pop(request_id))
        self.perform(self.session.leave(request_id, Cancelled("The client disconnected."), self.now))

    def perform(self, commands: Iterable[Command]) -> None:
        """As a shell does."""
        for command in commands:
            match command:
                case SendToRouter(message):
                    assert self.router_up
                    self.router.inbox.append(message)
                case SendToWorker(worker, message):
                    link = self.workers[worker]
                    link.attached = link.up
                    for position in message.streams if link.up else ():
                        link.replay(position.request_id, position.digest, position.next_index)
                case ShowTokens(request_id):
                    self.readers[request_id].show(command)
                case EndStream(end):
                    reader = self.readers.pop(end.request_id)
                    reader.finish(end)
                    self.gone.append(reader)
                case AcceptWorker(worker):
                    self.connect(worker)
                case ForgetWorker(worker):
                    self.disconnect(worker, 0)

    # Links

    def connect(self, worker: str) -> None:
        """A worker's link comes up."""
        link = self.workers[worker]
        if not link.up:
            link.up = True
            link.frames.append(LinkUp(worker, "1"))

    def disconnect(self, worker: str, keep: int) -> None:
        """A worker's link breaks: `keep` of its frames arrive, the others are lost."""
        link = self.workers[worker]
        link.up = link.attached = False
        while len(link.frames) > keep:
            link.frames.pop()

    def link_router(self, up: bool, keep: int = 0) -> None:
        """The link to the router comes up or breaks: `keep` messages in each direction arrive, the others are lost."""
        if not up and self.router_up:
            self.router.disconnect(keep)
        while up and not self.router_up and self.router.outbox:  # What arrives of a connection arrives before the next
            self.from_router()
        if up != self.router_up:
            self.router_up = self.router.connected = up
            self.perform(self.session.on_router_link(up, self.now))

    def kill_router(self) -> None:
        """The router dies, and a new one starts."""
        self.link_router(False)
        self.router.restart()

    def step(self, worker: str) -> None:
        """One step of a worker."""
        for request_id in self.workers[worker].step():
            self.router.ended(worker, request_id)

    def lose_worker(self, worker: str) -> None:
        """A worker dies and starts again."""
        self.disconnect(worker, 0)
        self.workers[worker] = Worker()
        self.router.lose(worker)
        if not self.router_up:
            self.connect(worker)

    def from_worker(self, worker: str, place: int = 0) -> None:
        """A frame of a worker arrives; with a `place` it overtakes others, but no `LinkUp` does or is overtaken."""
        frames = self.workers[worker].frames
        if not frames:
            return
        plain = next((at for at, frame in enumerate(frames) if isinstance(frame, LinkUp)), len(frames))
        place = min(place, max(0, plain - 1))
        message = frames[place]
        del frames[place]
        self.perform(self.session.on_worker_messages(worker, "1", [message], self.now))

    def spoil(self, worker: str, place: int, repeat: bool) -> None:
        """One frame of tokens is lost although the link works, or is repeated."""
        frames = self.workers[worker].frames
        if place < len(frames) and isinstance(frames[place], StepOutput):
            if repeat:
                frames.append(frames[place])
            else:
                del frames[place]

    def from_router(self) -> None:
        """A message of the router arrives."""
        if self.router.outbox:
            self.perform(self.session.on_router_message(self.router.outbox.popleft(), self.now))

    # Time

    def advance(self, seconds: float) -> None:
        """Time passes; nothing is on its way for longer than a step."""
        if seconds >= 1.0:
            self.settle()
        self.now += seconds
        self.perform(self.session.tick(self.now))

    def settle(self) -> None:
        """Deliver everything that is on its way."""
        while self.router.inbox or self.router.outbox or any(one.frames or one.orders for one in self.workers.values()):
            if self.router_up:
                self.router.route()
            else:
                self.router.inbox.clear()
            self.from_router()
            for name in WORKERS:
                self.from_worker(name)
                if self.workers[name].orders:
                    self.step(name)

    def come_to_rest(self) -> None:
        """Every link works again, and time passes until every stream has ended."""
        self.link_router(True)
        for name in WORKERS:
            self.connect(name)
        for _ in range(60):
            self.settle()
            for name in WORKERS:
                self.step(name)
            self.advance(0.3)
