"""What the loop around a role hears, and when it becomes somebody new."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cluster.messages import Register, Rejoin, Reserve, Reserved, RouterMessage, Welcome, WorkerMessage
from cluster.request import Request, SamplingParams
from cluster.worker import Endpoint, PageLayout, RoleName, WorkerInfo
from engine.batch import StepBudget
from engine.kv_pages import PagePool
from worker.loop import WorkerLoop
from worker.state import WorkerState

LAYOUT = PageLayout(8, 1, 4, 1, 1, "float32", "model")


@dataclass(eq=False)
class FakeLink:
    """Gives out what is put into `inbox`, and keeps what is sent."""

    incarnation: str = ""
    inbox: list[RouterMessage] = field(default_factory=list)
    sent: list[WorkerMessage] = field(default_factory=list)

    def receive(self, wait_s: float) -> list[RouterMessage]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, batch: list[WorkerMessage]) -> bool:
        self.sent += batch
        return True


class FakeTransport:
    """Nobody is ever written to."""

    in_flight = 0

    def __init__(self, agent: str) -> None:
        self.endpoint = Endpoint(agent, b"", 0, 0, LAYOUT)

    def poll(self) -> list[Any]:
        return []

    def close(self) -> None: ...


class FakeHeartbeat:
    def turned(self) -> None: ...

    def speak_for(self, incarnation: str) -> None: ...


def _loop() -> tuple[WorkerLoop, FakeLink]:
    state = WorkerState("w:1", "model", frozenset([0]), 1000, StepBudget(8, 8), PagePool(8, 4))
    info = WorkerInfo("w", "1", RoleName.DECODE, 0, Endpoint("w:1", b"", 0, 0, LAYOUT), 8, 8)
    link = FakeLink()
    loop = WorkerLoop(info, state, None, link, FakeTransport, FakeHeartbeat(), lambda page: 0)  # type: ignore[arg-type]
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
    assert loop.state.pool.num_held == 0
    assert Reserved in _turn(loop, link, Welcome("router", 0.5), _reserve())


def test_a_worker_that_is_sent_back_drops_what_it_holds_and_obeys_nothing_until_it_is_welcome() -> None:
    loop, link = _loop()
    _turn(loop, link, Welcome("router", 0.5), _reserve())
    said = _turn(loop, link, Rejoin("1"), _reserve())
    assert said.count(Register) == 1
    assert Reserved not in said
    assert link.incarnation != "1"
    assert loop.state.pool.num_held == 0
    assert Register not in _turn(loop, link, Rejoin("1"))  # of a life that is over
