"""The loop around a session: the order of copies, steps, sends and messages, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from baton.engine.host_pages import HostPages
from baton.engine.step import SampledToken, StepPlan, StepResult
from baton.protocol.errors import InternalError
from baton.protocol.gateway_messages import AttachStreams, LinkUp, StepOutput, StreamPosition, TokenMessage
from baton.protocol.messages import (
    Cancel,
    GatewayJoined,
    Goodbye,
    Prefill,
    Register,
    RegisterAck,
    Reregister,
    Reserved,
    ResyncPages,
    RouterMessage,
    SendPages,
    Work,
    WorkerMessage,
)
from baton.protocol.request import Request
from baton.protocol.worker import Endpoint, RoleName
from baton.worker.links import Arrival
from baton.worker.loop import WorkerLoop
from tests.worker.sessions import GATEWAY, LAYOUT, at_peer, prefill, request, reserve, session

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
        self.endpoint = Endpoint(agent, b"", 0, 0, LAYOUT)

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


def _loop(journal: Journal | None = None, role: RoleName = RoleName.DECODE) -> tuple[WorkerLoop, FakeLinks]:
    link, host = FakeLinks(), journal or HOST
    made = session(role, num_pages=8, host_pages=8 if journal else 0)
    loop = WorkerLoop(made, journal, link, FakeTransport, FakeHeartbeat(), lambda page: 0, host)  # type: ignore[arg-type]
    loop._flush()
    return loop, link


def _order(work: Request) -> Prefill:
    return Prefill(work.request_id, Work(work), "g", False, 0)


def open_gateway(loop: WorkerLoop, link: FakeLinks) -> None:
    """The worker serves, and a gateway takes its tokens."""
    _turn(loop, link, RegisterAck("router", 0.5, "1"), GATEWAY)
    assert link.connected == ["g"]
    link.arrivals = [Arrival("g", [True], [])]
    assert LinkUp in _turn(loop, link)
    link.arrivals = [Arrival("g", [], [AttachStreams(())])]
    _turn(loop, link)


def _turn(loop: WorkerLoop, link: FakeLinks, *messages: RouterMessage) -> list[type]:
    """The types of what the loop sends in answer to messages."""
    link.inbox += messages
    link.sent.clear()
    loop._turn()
    return [type(message) for message in link.sent]


def test_pages_are_copied_before_the_step_that_writes_or_reads_them_and_a_new_incarnation_has_empty_slots() -> None:
    journal = Journal()
    loop, link = _loop(journal)
    requests = [request(name, (tokens,) * tokens, max_tokens=15) for name, tokens in (("a", 13), ("b", 9))]
    _turn(loop, link, RegisterAck("router", 0.5, "1"), *(_order(one) for one in requests))
    while "in" not in journal.entries:
        before = len(journal.entries)
        _turn(loop, link)
        assert journal.entries[before:] in (["step"], ["out", "step"], ["in", "step"])
    assert journal.entries.count("out") == 1
    _turn(loop, link, *(_order(replace(one, request_id=one.request_id * 2)) for one in requests))
    while not loop.session.role.occupancy().swapped:
        _turn(loop, link)
    _turn(loop, link, Reregister("1", "router"))
    assert loop.session.role.occupancy().swapped == loop.session.role._swap.num_in_use == 0  # type: ignore[attr-defined]


def test_a_worker_registers_again_under_another_name_on_its_link_and_transport() -> None:
    loop, link = _loop(Journal())
    assert Reserved in _turn(loop, link, RegisterAck("router", 0.5, "1"), reserve())
    transport = loop.transport
    assert _turn(loop, link, Reregister("1", "router"), reserve()) == [Register]
    assert link.incarnation == loop.session.info.incarnation == "2"
    assert loop.transport is not transport
    assert loop.transport.endpoint.agent == "w:2"


@dataclass(eq=False)
class Overlap(Journal):
    """A device of its own: it notes what was sent, and lets an order arrive, between launch and collect."""

    link: FakeLinks | None = None
    order: RouterMessage | None = None
    sent_during_step: list[type] = field(default_factory=list)
    async_execution: bool = True

    def launch(self, plan: StepPlan) -> StepPlan:
        assert self.link is not None
        self.link.sent.clear()
        if self.order is not None:
            self.link.inbox.append(self.order)
        return super().launch(plan)

    def collect(self, launched: StepPlan) -> StepResult:
        assert self.link is not None
        self.sent_during_step = [type(message) for message in self.link.sent]
        return super().collect(launched)


def _overlapping() -> tuple[WorkerLoop, FakeLinks, Overlap]:
    engine = Overlap()
    loop, link = _loop(engine)
    engine.link = link
    open_gateway(loop, link)
    _turn(loop, link, prefill("whole"))
    return loop, link, engine


def test_while_a_device_computes_the_last_steps_tokens_are_sent_and_orders_wait_for_the_end_of_the_step() -> None:
    loop, link, engine = _overlapping()
    loop._turn()
    assert StepOutput not in engine.sent_during_step, "there was no step before"
    engine.order = Cancel("whole")
    loop._turn()
    assert StepOutput in engine.sent_during_step
    assert engine.entries[-2:] == ["step", "end of step"]
    assert loop.session.state.pool.num_in_use == 0, "cancelled once the step had ended"
    engine.order = None
    loop._turn()
    assert StepOutput in [type(message) for message in link.sent], "nothing computes: the rest is sent at once"


def test_a_full_link_is_noticed_while_a_device_computes_and_acted_on_after_the_step() -> None:
    loop, link, engine = _overlapping()
    loop._turn()
    link.full = True
    for _ in range(5):
        loop._turn()
        assert engine.entries[-1] == "end of step"
    assert [type(message) for message in loop.session.outbox] == [Register]


def test_a_gateway_whose_link_is_full_is_asked_what_it_needs_and_the_worker_stays_registered() -> None:
    loop, link, _ = _overlapping()
    _turn(loop, link)
    link.full_gateways = ["g"]
    for _ in range(3):
        assert not {StepOutput, LinkUp, Register} & set(_turn(loop, link))
    link.full_gateways = []
    while LinkUp not in (kinds := _turn(loop, link)):
        assert StepOutput not in kinds
    while loop.session.role.occupancy().request_ids:
        assert StepOutput not in _turn(loop, link)
    link.arrivals = [Arrival("g", [], [AttachStreams((StreamPosition("whole", 1),))])]
    _turn(loop, link)
    (rest,) = [message for message in link.sent if isinstance(message, StepOutput)]
    assert [token.index for token in rest.tokens] == list(range(1, 20)), "it has ended since then"


def test_messages_that_cannot_be_sent_do_not_pile_up() -> None:
    loop, link = _loop(Journal())
    _turn(loop, link, RegisterAck("router", 0.5, "1"), prefill("whole"))
    _turn(loop, link)
    link.full = True
    for _ in range(10):
        _turn(loop, link, ResyncPages())
    assert [type(message) for message in loop.session.outbox] == [Register]
    link.full = False
    assert _turn(loop, link)[0] is Register
    (register,) = [message for message in link.sent if isinstance(message, Register)]
    assert register.held[0].request_id == "whole"


@pytest.mark.parametrize("router_id", ["router", "another"])
def test_a_worker_whose_writes_do_not_end_says_that_it_has_failed(
    monkeypatch: pytest.MonkeyPatch, router_id: str
) -> None:
    monkeypatch.setattr("baton.worker.session.FINISH_WRITES_S", 0.01)
    loop, link = _loop(Journal(), RoleName.PREFILL)
    orders: list[RouterMessage] = [prefill("r", disaggregated=True), SendPages("r", at_peer("r", 3))]
    _turn(loop, link, RegisterAck("router", 0.5, "1"), *orders)
    _turn(loop, link)
    assert loop.transport.in_flight
    link.inbox.append(Reregister("1", router_id))
    with pytest.raises(InternalError, match="writes to peers"):
        loop.run()
    goodbye = link.sent[-1]
    assert isinstance(goodbye, Goodbye)
    assert goodbye.failed


def test_a_stopped_worker_leaves_on_purpose() -> None:
    loop, link = _loop()
    loop.stop()
    loop.run()
    assert link.sent[-1] == Goodbye("stopped")


def test_a_worker_whose_pages_do_not_add_up_ends_once_it_is_idle_and_not_during_a_step() -> None:
    loop, link = _loop(Journal())
    _turn(loop, link, RegisterAck("router", 0.5, "1"))
    checked = loop.session.state.pool.check_integrity
    checks: list[int] = []
    loop.session.state.pool.check_integrity = lambda: checks.append(loop.session.state.pool.num_in_use)  # type: ignore[method-assign]
    _turn(loop, link, _order(request(max_tokens=2)))
    while loop.session.role.occupancy().request_ids:
        assert not checks
        _turn(loop, link)
    for _ in range(3):
        _turn(loop, link)
    assert checks == [0]
    loop.session.state.pool.check_integrity = checked  # type: ignore[method-assign]
    loop.session.state.pool._free.append(loop.session.state.pool._free[0])
    _turn(loop, link, ResyncPages())
    with pytest.raises(InternalError, match="two states"):
        _turn(loop, link)
