"""What the loop around a role hears, and when it becomes somebody new."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from baton.engine.batch import StepBudget
from baton.engine.host_pages import HostPages
from baton.engine.kv_pages import PagePool
from baton.engine.step import SampledToken, StepPlan, StepResult
from baton.protocol.errors import InternalError
from baton.protocol.messages import (
    AdoptSequence,
    Cancel,
    Goodbye,
    Prefill,
    Register,
    RegisterAck,
    RequestFailed,
    Reregister,
    Reserve,
    Reserved,
    ResyncPages,
    RouterMessage,
    StepOutput,
    WorkerMessage,
)
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo
from baton.worker.core.state import WorkerState
from baton.worker.loop import WorkerLoop

LAYOUT = PageLayout(8, 1, 4, 1, 1, "float32", "model")
HOST = HostPages(torch.zeros(LAYOUT.shape), 0)


@dataclass(eq=False)
class FakeLink:
    """Gives out what is put into `inbox`, and keeps what is sent."""

    incarnation: str = ""
    inbox: list[RouterMessage] = field(default_factory=list)
    sent: list[WorkerMessage] = field(default_factory=list)
    full: bool = False  # nobody takes what is sent

    def receive(self, wait_s: float) -> list[RouterMessage]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, batch: list[WorkerMessage]) -> bool:
        self.sent += [] if self.full else batch
        return not self.full

    def wake(self) -> None: ...

    def close(self) -> None: ...


class FakeTransport:
    """Nobody is ever written to."""

    in_flight = 0

    def __init__(self, agent: str) -> None:
        self.endpoint = Endpoint(agent, b"", 0, 0, LAYOUT)

    def progress(self) -> None: ...

    def poll(self) -> list[Any]:
        return []

    def close(self) -> None: ...


class FakeHeartbeat:
    def turned(self) -> None: ...

    def speak_for(self, incarnation: str) -> None: ...

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


def _loop(journal: Journal | None = None) -> tuple[WorkerLoop, FakeLink]:
    host_pages = 8 if journal else 0
    state = WorkerState("w:1", "model", frozenset([0]), 1000, StepBudget(8, 8), PagePool(8, 4), host_pages=host_pages)
    info = WorkerInfo("w", "1", RoleName.DECODE, 0, Endpoint("w:1", b"", 0, 0, LAYOUT), 8, 8)
    link = FakeLink()
    host = journal or HOST
    loop = WorkerLoop(info, state, journal, link, FakeTransport, FakeHeartbeat(), lambda page: 0, host)  # type: ignore[arg-type]
    loop._flush()
    return loop, link


def _reserve() -> Reserve:
    return Reserve("r/1", Request("r", (1, 2, 3), SamplingParams(max_tokens=4), 0.0), (), 0)


def _turn(loop: WorkerLoop, link: FakeLink, *messages: RouterMessage) -> list[type]:
    """What the loop says in answer to messages."""
    link.inbox += messages
    link.sent.clear()
    loop._turn()
    return [type(message) for message in link.sent]


def test_a_worker_that_is_not_welcome_yet_obeys_no_order_because_it_was_for_the_one_before() -> None:
    loop, link = _loop()
    assert Reserved not in _turn(loop, link, _reserve())
    assert loop.state.pool.num_in_use == 0
    assert Reserved in _turn(loop, link, RegisterAck("router", 0.5, "1"), _reserve())


def test_a_worker_that_is_sent_back_drops_what_it_holds_and_obeys_nothing_until_it_is_welcome() -> None:
    loop, link = _loop()
    _turn(loop, link, RegisterAck("router", 0.5, "1"), _reserve())
    said = _turn(loop, link, Reregister("1", "router"), _reserve())
    assert said.count(Register) == 1
    assert Reserved not in said
    assert link.incarnation != "1"
    assert loop.state.pool.num_in_use == 0
    assert Register not in _turn(loop, link, Reregister("1", "router"))  # of a life that is over


def test_pages_are_copied_before_the_step_that_writes_or_reads_them_and_a_new_life_begins_with_empty_slots() -> None:
    journal = Journal()
    loop, link = _loop(journal)
    requests = [
        Request(name, (tokens,) * tokens, SamplingParams(max_tokens=15)) for name, tokens in (("a", 13), ("b", 9))
    ]
    _turn(loop, link, RegisterAck("router", 0.5, "1"), *(Prefill(one, (), False, 0) for one in requests))
    while "in" not in journal.entries:
        before = len(journal.entries)
        _turn(loop, link)
        assert journal.entries[before:] in (["step"], ["out", "step"], ["in", "step"])
    assert journal.entries.count("out") == 1
    _turn(loop, link, *(Prefill(replace(one, request_id=one.request_id * 2), (), False, 0) for one in requests))
    while not loop.role.occupancy().swapped:
        _turn(loop, link)
    _turn(loop, link, Reregister("1", "router"))
    assert loop.role.occupancy().swapped == loop.role._swap.num_in_use == 0  # type: ignore[attr-defined]


def _serving() -> tuple[WorkerLoop, FakeLink]:
    """It has answered two tokens of a request, and holds a reservation."""
    loop, link = _loop(Journal())
    request = Request("whole", (1, 2, 3), SamplingParams(max_tokens=20), 0.0)
    _turn(loop, link, RegisterAck("router", 0.5, "1"), _reserve(), Prefill(request, (), False, 0))
    for _ in range(2):
        assert StepOutput in _turn(loop, link)
    return loop, link


def test_a_worker_that_a_new_router_does_not_know_keeps_its_sequences_and_says_nothing_of_them_unasked() -> None:
    loop, link = _serving()
    assert StepOutput not in _turn(loop, link, Reregister("1", "another"))[1:]
    (register,) = [message for message in link.sent if isinstance(message, Register)]
    (held,) = register.held
    assert (held.request_id, held.num_tokens) == ("whole", 3)
    assert loop.role.occupancy().reservation_ids == ()  # its writer may be anywhere
    assert StepOutput not in _turn(loop, link)  # it goes on
    welcome = RegisterAck("another", 0.5, loop.info.incarnation)
    _turn(loop, link, welcome, AdoptSequence("whole", 1), AdoptSequence("unknown", 0))
    (told,) = [message for message in link.sent if isinstance(message, StepOutput)]
    assert [token.index for token in told.tokens] == [1, 2, 3, 4]
    (failed,) = [message for message in link.sent if isinstance(message, RequestFailed)]
    assert (failed.request_id, failed.error) == ("unknown", "NotFound")
    assert StepOutput in _turn(loop, link)


@dataclass(eq=False)
class Overlap(Journal):
    """A device of its own: it looks at what was sent, and lets an order come, between launch and collect."""

    link: FakeLink | None = None
    order: RouterMessage | None = None
    sent_meanwhile: list[type] = field(default_factory=list)
    async_execution: bool = True

    def launch(self, plan: StepPlan) -> StepPlan:
        assert self.link is not None
        self.link.sent.clear()
        if self.order is not None:
            self.link.inbox.append(self.order)
        return super().launch(plan)

    def collect(self, launched: StepPlan) -> StepResult:
        assert self.link is not None
        self.sent_meanwhile = [type(message) for message in self.link.sent]
        return super().collect(launched)


def _overlapping() -> tuple[WorkerLoop, FakeLink, Overlap]:
    engine = Overlap()
    loop, link = _loop(engine)
    engine.link = link
    request = Request("whole", (1, 2, 3), SamplingParams(max_tokens=20), 0.0)
    _turn(loop, link, RegisterAck("router", 0.5, "1"), Prefill(request, (), False, 0))
    return loop, link, engine


def test_while_a_device_computes_the_last_steps_tokens_go_out_and_what_comes_is_heard_after_the_step() -> None:
    loop, link, engine = _overlapping()
    loop._turn()
    assert StepOutput not in engine.sent_meanwhile, "there was no step before"
    engine.order = Cancel("whole")
    loop._turn()
    assert StepOutput in engine.sent_meanwhile
    assert engine.entries[-2:] == ["step", "end of step"]
    assert loop.state.pool.num_in_use == 0, "cancelled once the step had ended"
    engine.order = None
    loop._turn()
    assert StepOutput in [type(message) for message in link.sent], "nothing computes: what is left goes out at once"


def test_a_full_link_is_noticed_while_a_device_computes_and_acted_on_after_the_step() -> None:
    loop, link, engine = _overlapping()
    loop._turn()
    link.full = True
    for _ in range(5):
        loop._turn()
        assert engine.entries[-1] == "end of step"
    assert [type(message) for message in loop._outbox] == [Register]


def test_a_worker_that_its_own_router_has_given_up_keeps_nothing() -> None:
    loop, link = _serving()
    _turn(loop, link, Reregister("1", "router"))
    (register,) = [message for message in link.sent if isinstance(message, Register)]
    assert register.held == ()
    assert loop.state.pool.num_in_use == 0


def test_a_late_welcome_for_an_earlier_life_is_not_heard() -> None:
    loop, link = _loop()
    _turn(loop, link, RegisterAck("router", 0.5, "1"), Reregister("1", "another"))
    assert Reserved not in _turn(loop, link, RegisterAck("another", 0.5, "1"), _reserve())
    assert Reserved in _turn(loop, link, RegisterAck("another", 0.5, loop.info.incarnation), _reserve())


def test_what_nobody_takes_does_not_pile_up() -> None:
    loop, link = _serving()
    link.full = True
    for _ in range(10):
        _turn(loop, link)
    assert [type(message) for message in loop._outbox] == [Register]
    link.full = False
    assert _turn(loop, link)[0] is Register
    (register,) = [message for message in link.sent if isinstance(message, Register)]
    assert register.held[0].request_id == "whole"


@pytest.mark.parametrize("router_id", ["router", "another"])
def test_a_worker_whose_writes_do_not_end_cannot_become_somebody_new_and_says_that_it_has_failed(
    monkeypatch: pytest.MonkeyPatch, router_id: str
) -> None:
    monkeypatch.setattr("baton.worker.loop.FINISH_WRITES_S", 0.01)
    loop, link = _loop()
    _turn(loop, link, RegisterAck("router", 0.5, "1"))
    loop._write_of_transfer[0] = 0  # nobody takes it
    link.inbox.append(Reregister("1", router_id))
    with pytest.raises(InternalError):
        loop.run()
    goodbye = link.sent[-1]
    assert isinstance(goodbye, Goodbye)
    assert goodbye.failed


def test_a_worker_that_is_stopped_leaves_on_purpose() -> None:
    loop, link = _loop()
    loop.stop()
    loop.run()
    assert link.sent[-1] == Goodbye("stopped")


def test_a_worker_whose_pages_do_not_add_up_ends_once_it_is_idle_and_not_during_a_step() -> None:
    loop, link = _loop(Journal())
    _turn(loop, link, RegisterAck("router", 0.5, "1"))
    checked = loop.state.pool.check_integrity
    checks: list[int] = []
    loop.state.pool.check_integrity = lambda: checks.append(loop.state.pool.num_in_use)  # type: ignore[method-assign]
    _turn(loop, link, Prefill(Request("r", (1, 2, 3), SamplingParams(max_tokens=2), 0.0), (), False, 0))
    while loop.role.occupancy().request_ids:
        assert not checks
        _turn(loop, link)
    for _ in range(3):
        _turn(loop, link)
    assert checks == [0]
    loop.state.pool.check_integrity = checked  # type: ignore[method-assign]
    loop.state.pool._free.append(loop.state.pool._free[0])
    _turn(loop, link, ResyncPages())
    with pytest.raises(InternalError, match="two states"):
        _turn(loop, link)
