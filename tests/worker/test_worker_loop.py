"""The loop around a session: the order of copies, steps, sends and messages, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from baton.engine.step import StepPlan, StepResult
from baton.protocol.errors import InternalError
from baton.protocol.gateway_messages import AttachStreams, LinkUp, StepOutput, StreamPosition
from baton.protocol.messages import Cancel, Reserved, RouterMessage, SendPages
from baton.protocol.session_messages import Goodbye, Register, RegisterAck, Reregister, ResyncPages
from baton.protocol.worker import RoleName
from baton.worker.background_transport import BackgroundTransport
from baton.worker.links import Arrival
from baton.worker.loop import WorkerLoop
from tests.worker.loops import FakeLinks, Journal, make_loop, open_gateway, turn, whole
from tests.worker.sessions import at_peer, prefill, request, reserve


def test_pages_are_copied_before_the_step_that_writes_or_reads_them_and_a_new_incarnation_has_empty_slots() -> None:
    journal = Journal()
    loop, link = make_loop(journal)
    requests = [request(name, (tokens,) * tokens, max_tokens=15) for name, tokens in (("a", 13), ("b", 9))]
    turn(loop, link, RegisterAck("router", 0.5, "1"), *(whole(one) for one in requests))
    while "in" not in journal.entries:
        before = len(journal.entries)
        turn(loop, link)
        assert journal.entries[before:] in (["step"], ["out", "step"], ["in", "step"])
    assert journal.entries.count("out") == 1
    turn(loop, link, *(whole(replace(one, request_id=one.request_id * 2)) for one in requests))
    while not loop.session.role.occupancy().swapped:
        turn(loop, link)
    turn(loop, link, Reregister("1", "router"))
    assert loop.session.role.occupancy().swapped == loop.session.role._swap.num_in_use == 0  # type: ignore[attr-defined]


def test_a_worker_registers_again_under_another_name_on_its_link_and_transport() -> None:
    loop, link = make_loop(Journal())
    assert Reserved in turn(loop, link, RegisterAck("router", 0.5, "1"), reserve())
    transport = loop.transport
    assert isinstance(transport, BackgroundTransport)
    opened = transport.current
    assert turn(loop, link, Reregister("1", "router"), reserve()) == [Register]
    assert link.incarnation == loop.session.info.incarnation == "2"
    assert transport.current is not opened
    assert transport.endpoint.agent == "w:2"


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
    loop, link = make_loop(engine)
    engine.link = link
    open_gateway(loop, link)
    turn(loop, link, prefill("whole"))
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
    turn(loop, link)
    link.full_gateways = ["g"]
    for _ in range(3):
        assert not {StepOutput, LinkUp, Register} & set(turn(loop, link))
    link.full_gateways = []
    while LinkUp not in (kinds := turn(loop, link)):
        assert StepOutput not in kinds
    while loop.session.role.occupancy().request_ids:
        assert StepOutput not in turn(loop, link)
    link.arrivals = [Arrival("g", [], [AttachStreams((StreamPosition("whole", 1),))])]
    turn(loop, link)
    (rest,) = [message for message in link.sent if isinstance(message, StepOutput)]
    assert [token.index for token in rest.tokens] == list(range(1, 20)), "it has ended since then"


def test_messages_that_cannot_be_sent_do_not_pile_up() -> None:
    loop, link = make_loop(Journal())
    turn(loop, link, RegisterAck("router", 0.5, "1"), prefill("whole"))
    turn(loop, link)
    link.full = True
    for _ in range(10):
        turn(loop, link, ResyncPages())
    assert [type(message) for message in loop.session.outbox] == [Register]
    link.full = False
    assert turn(loop, link)[0] is Register
    (register,) = [message for message in link.sent if isinstance(message, Register)]
    assert register.held[0].request_id == "whole"


@pytest.mark.parametrize("router_id", ["router", "another"])
def test_a_worker_whose_writes_do_not_end_says_that_it_has_failed(
    monkeypatch: pytest.MonkeyPatch, router_id: str
) -> None:
    monkeypatch.setattr("baton.worker.session.FINISH_WRITES_S", 0.01)
    loop, link = make_loop(Journal(), RoleName.PREFILL)
    orders: list[RouterMessage] = [prefill("r", disaggregated=True), SendPages("r", at_peer("r", 3))]
    turn(loop, link, RegisterAck("router", 0.5, "1"), *orders)
    turn(loop, link)
    assert loop.transport.in_flight
    link.inbox.append(Reregister("1", router_id))
    with pytest.raises(InternalError, match="writes to peers"):
        loop.run()
    goodbye = link.sent[-1]
    assert isinstance(goodbye, Goodbye)
    assert goodbye.failed


def test_a_stopped_worker_leaves_on_purpose() -> None:
    loop, link = make_loop()
    loop.stop()
    loop.run()
    assert link.sent[-1] == Goodbye("stopped")


def test_a_worker_whose_pages_do_not_add_up_ends_once_it_is_idle_and_not_during_a_step() -> None:
    loop, link = make_loop(Journal())
    turn(loop, link, RegisterAck("router", 0.5, "1"))
    checked = loop.session.state.pool.check_integrity
    checks: list[int] = []
    loop.session.state.pool.check_integrity = lambda: checks.append(loop.session.state.pool.num_in_use)  # type: ignore[method-assign]
    turn(loop, link, whole(request(max_tokens=2)))
    while loop.session.role.occupancy().request_ids:
        assert not checks
        turn(loop, link)
    for _ in range(3):
        turn(loop, link)
    assert checks == [0]
    loop.session.state.pool.check_integrity = checked  # type: ignore[method-assign]
    loop.session.state.pool._free.append(loop.session.state.pool._free[0])
    turn(loop, link, ResyncPages())
    with pytest.raises(InternalError, match="two states"):
        turn(loop, link)
