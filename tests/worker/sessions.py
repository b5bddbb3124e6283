"""A worker's session for the tests, driven by hand, with an engine whose tokens follow from request and position."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.config.schema import EngineSection
from baton.engine.batch import StepBudget
from baton.engine.kv_pages import PagePool
from baton.engine.sequence import Sequence as EngineSequence
from baton.engine.step import SampledToken, StepResult
from baton.protocol.gateway_messages import AttachStreams, LinkUp, StepOutput, StreamPosition, TokenMessage, TokenOutput
from baton.protocol.handoff import Reservation
from baton.protocol.messages import Prefill, Reserve, RouterMessage, Work, WorkerMessage
from baton.protocol.request import Request, SamplingParams
from baton.protocol.session_messages import GatewayJoined, RegisterAck
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo
from baton.worker.core.role import SendToGateway, WriteEnded, WritePages
from baton.worker.core.session_commands import NewTransport, SessionCommand
from baton.worker.core.state import WorkerState
from baton.worker.session import WorkerSession

LAYOUT = PageLayout(16, 1, 4, 1, 1, "float32", "model")
EOS = 0
GATEWAY = GatewayJoined("g", "1", "tcp://g:1")
STALL_S = 2.0


def session(role: RoleName = RoleName.DECODE, num_pages: int = LAYOUT.num_pages, host_pages: int = 0) -> WorkerSession:
    """Of worker "w", whose incarnations are "1", "2", …; it has no transport yet."""
    engine = EngineSection(write_stall_s=STALL_S)
    state = WorkerState(
        *("w:1", "model", frozenset([EOS]), 1000, StepBudget(8, 8), PagePool(num_pages, LAYOUT.page_size)),
        engine=engine,
        host_pages=host_pages,
    )
    info = WorkerInfo("w", "1", role, 0, Endpoint("w:1", LAYOUT), 8, 8)
    later = itertools.count(2)
    return WorkerSession(info, state, lambda: str(next(later)))


def request(name: str = "r", prompt: Sequence[int] = (1, 2, 3), max_tokens: int = 20) -> Request:
    return Request(name, tuple(prompt), SamplingParams(max_tokens=max_tokens))


def prefill(
    name: str = "r", disaggregated: bool = False, prompt: Sequence[int] = (1, 2, 3), gateway: str = "g"
) -> Prefill:
    return Prefill(name, Work(request(name, prompt)), gateway, disaggregated, 0)


def reserve(number: int = 1, name: str = "in", max_tokens: int = 4, gateway: str = "g") -> Reserve:
    return Reserve(f"{name}/{number}", name, Work(request(name, max_tokens=max_tokens)), gateway, 0)


def token_at(request_id: str, index: int) -> int:
    """The output token of a request at an index, as the tests' engine samples it."""
    return 1 + (sum(request_id.encode()) + 7 * index) % 97


def next_token(sequence: EngineSequence) -> SampledToken:
    """The token that follows the sequence's known ones."""
    return SampledToken(token_at(sequence.request_id, sequence.num_output))


def at_peer(request_id: str, known_tokens: int, number: int = 1) -> Reservation:
    """Pages that worker "peer" holds for the request."""
    pages = tuple(range(12))
    return Reservation(f"{request_id}/{number}", request_id, "peer:1", pages, (1,) * len(pages), 0, known_tokens)


@dataclass(eq=False)
class HandDriven:
    """A session with a transport: its writes are on their way until `end_write`, and its messages are kept."""

    session: WorkerSession
    now: float = 0.0
    sent: list[WorkerMessage] = field(default_factory=list)
    commands: list[SessionCommand] = field(default_factory=list)
    writes: list[WritePages] = field(default_factory=list)
    to_gateways: list[SendToGateway] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open(self.session.agent)

    @property
    def in_use(self) -> int:
        return self.session.state.pool.num_in_use

    def open(self, agent: str) -> None:
        self.session.on_transport(Endpoint(agent, LAYOUT), self.now)

    def perform(self, commands: list[SessionCommand]) -> None:
        self.commands += commands
        self.writes += [command for command in commands if isinstance(command, WritePages)]
        for command in commands:
            if isinstance(command, NewTransport):
                self.open(command.agent)
            elif isinstance(command, SendToGateway):
                self.to_gateways.append(command)

    def receive(self, *messages: RouterMessage) -> list[type]:
        """The types of what the session sends in answer."""
        for message in messages:
            self.perform(self.session.on_message(message, self.now))
        return self.send()

    def acknowledge(self, router_id: str = "router") -> list[type]:
        return self.receive(RegisterAck(router_id, 0.5, self.session.info.incarnation))

    def send(self) -> list[type]:
        batch, self.session.outbox = self.session.outbox, []
        self.sent += batch
        return [type(message) for message in batch]

    def tick(self, after_s: float = 0.0) -> list[type]:
        self.now += after_s
        self.perform(self.session.tick(self.now, idle=True))
        return self.send()

    def step(self) -> list[type]:
        """Plan, execute, absorb."""
        copies, plan = self.session.plan(self.now)
        self.perform(copies)
        if plan is not None:
            result = StepResult([next_token(sequence) for sequence in plan.sampling])
            self.perform(self.session.absorb(plan, result, self.now))
        return self.send()

    def open_gateway(self, joined: GatewayJoined = GATEWAY, *positions: StreamPosition) -> list[TokenOutput]:
        """A gateway joins, its link opens, and it asks for these streams; returns what it gets."""
        self.receive(joined)
        self.perform(self.session.on_gateway_link(joined.gateway, True, self.now))
        assert self.take(joined.gateway)[-1:] == [LinkUp("w", self.session.info.incarnation)]
        return self.attach(joined.gateway, *positions)

    def attach(self, gateway: str, *positions: StreamPosition) -> list[TokenOutput]:
        """The gateway asks for these streams; returns what it gets."""
        self.perform(self.session.on_gateway_message(gateway, AttachStreams(positions), self.now))
        return self.tokens(gateway)

    def take(self, gateway: str = "g") -> list[TokenMessage]:
        """The messages to a gateway since the last call."""
        taken = [command.message for command in self.to_gateways if command.gateway == gateway]
        self.to_gateways = [command for command in self.to_gateways if command.gateway != gateway]
        return taken

    def tokens(self, gateway: str = "g") -> list[TokenOutput]:
        """The tokens in `take`."""
        return [token for message in self.take(gateway) if isinstance(message, StepOutput) for token in message.tokens]

    def end_write(self, error: str = "", index: int = 0) -> list[type]:
        write = self.writes.pop(index)
        num_bytes = 0 if error else LAYOUT.page_bytes * len(write.source_pages)
        self.perform(self.session.on_write_ended(WriteEnded(write.write_id, num_bytes, 0.001, error), self.now))
        return self.send()
