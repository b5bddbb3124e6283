"""A worker's loop for the tests: links, transport, engine and host memory that write down what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from baton.engine.host_pages import HostPages
from baton.engine.step import SampledToken, StepPlan, StepResult
from baton.protocol.gateway_messages import AttachStreams, LinkUp, TokenMessage
from baton.protocol.messages import Prefill, RouterMessage, Work, WorkerMessage
from baton.protocol.request import Request
from baton.protocol.session_messages import GatewayJoined, RegisterAck
from baton.protocol.worker import Endpoint, RoleName
from baton.worker.background_transport import BackgroundTransport
from baton.worker.links import Arrival
from baton.worker.loop import WorkerLoop
from baton.worker.session import Phase
from tests.worker.sessions import GATEWAY, LAYOUT, session

HOST = HostPages(torch.zeros(LAYOUT.shape), 0)


@dataclass(eq=False)
class FakeLinks:
    """Give out what is put into `inbox` and `arrivals`, and keep what is sent."""

    incarnation: str = ""
    inbox: list[RouterMessage] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)  # Over the links to gateways
    sent: list[WorkerMessage | TokenMessage] = field(default_factory=list)
    full: bool = False  # The router's link takes no messages
    full_gateways: list[str] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    _put: dict[str, list[TokenMessage]] = field(default_factory=dict)

    def receive(self, wait_s: float) -> list[Arrival]:
        arrivals = [Arrival("", [], self.inbox), *self.arrivals]
        self.inbox, self.arrivals = [], []
        return [arrival for arrival in arrivals if arrival.messages or arrival.changes]

    def renew(self, incarnation: str) -> None:
        self.incarnation = incarnation

    def connect(self, joined: GatewayJoined) -> None:
        self.connected.append(joined.gateway)

    def disconnect(self, gateway: str) -> None:
        self.connected.remove(gateway)

    def send(self, batch: list[WorkerMessage]) -> bool:
        self.sent += [] if self.full else batch
        return not self.full

    def put(self, gateway: str, message: TokenMessage) -> None:
        assert gateway in self.connected
        self._put.setdefault(gateway, []).append(message)

    def flush_tokens(self) -> list[str]:
        put, self._put = self._put, {}
        for gateway, batch in put.items():
            self.sent += [] if gateway in self.full_gateways else batch
        return [gateway for gateway in put if gateway in self.full_gateways]

    def wake(self) -> None: ...

    def close(self) -> None: ...


class FakeTransport:
    """Its writes never end."""

    in_flight = 0

    def __init__(self, agent: str) -> None:
        self.endpoint = Endpoint(agent, LAYOUT)

    def write(self, *arguments: object) -> int:
        self.in_flight += 1
        return self.in_flight

    def progress(self) -> None: ...

    def poll(self) -> list[Any]:
        return []

    def close(self) -> None: ...


class FakeHeartbeat:
    def turned(self, incarnation: str) -> None: ...

    def close(self) -> None: ...


@dataclass(eq=False)
class Journal:
    """An engine that computes nothing and host memory that copies nothing: both write down when they are asked to."""

    entries: list[str] = field(default_factory=list)
    async_execution: bool = False

    def launch(self, plan: StepPlan) -> StepPlan:
        self.entries.append("step")
        return plan

    def done(self, launched: StepPlan) -> bool:
        return True

    def collect(self, launched: StepPlan) -> StepResult:
        if self.async_execution:
            self.entries.append("end of step")
        return StepResult([SampledToken(1) for part in launched.slices if part.samples])

    def copy_out(self, pages: tuple[int, ...], slots: tuple[int, ...]) -> None:
        self.entries.append("out")

    def copy_in(self, slots: tuple[int, ...], pages: tuple[int, ...]) -> None:
        self.entries.append("in")


def make_loop(
    journal: Journal | None = None,
    role: RoleName = RoleName.DECODE,
    make_transport: Callable[[str], Any] = FakeTransport,
) -> tuple[WorkerLoop, FakeLinks]:
    link, host = FakeLinks(), journal or HOST
    made = session(role, num_pages=8, host_pages=8 if journal else 0)
    transport = BackgroundTransport(make_transport, made.agent)
    loop = WorkerLoop(made, journal, link, transport, FakeHeartbeat(), lambda page: 0, host)  # type: ignore[arg-type]
    loop._flush()
    return loop, link


def whole(work: Request) -> Prefill:
    return Prefill(work.request_id, Work(work), "g", False, 0)


def open_gateway(loop: WorkerLoop, link: FakeLinks) -> None:
    """The worker serves, and a gateway takes its tokens."""
    turn(loop, link, RegisterAck("router", 0.5, "1"), GATEWAY)
    assert link.connected == ["g"]
    link.arrivals = [Arrival("g", [True], [])]
    assert LinkUp in turn(loop, link)
    link.arrivals = [Arrival("g", [], [AttachStreams(())])]
    turn(loop, link)


def turn(loop: WorkerLoop, link: FakeLinks, *messages: RouterMessage) -> list[type]:
    """The types of what the loop sends in answer to messages, once a transport is open."""
    link.inbox += messages
    link.sent.clear()
    loop._turn()
    while loop.session.phase is Phase.STARTING:
        loop._turn()
    return [type(message) for message in link.sent]
