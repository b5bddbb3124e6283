"""A worker's session under orders, steps, ends of writes, notices and lost connections in any order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton.protocol.handoff import HandoffNotice, Reservation
from baton.protocol.messages import Cancel, Release, Reserved, RouterMessage, SendPages
from baton.protocol.session_messages import Alive, Register, RegisterAck, Reregister, SwitchRole
from baton.protocol.worker import RoleName
from baton.worker.session import Phase
from tests.worker.sessions import HandDriven, at_peer, prefill, reserve, session


class AnySchedule(RuleBasedStateMachine):
    """Orders, steps, ends of writes, notices and lost connections in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.driven = HandDriven(session(num_pages=12))
        self.names = 0
        self.reserved: dict[str, Reservation] = {}  # that a peer may write into

    @property
    def live(self) -> list[str]:
        return list(self.driven.session.role.occupancy().request_ids)

    def _obeys_only_while_serving(self, message: RouterMessage) -> None:
        held = self.driven.session.role.occupancy(), self.driven.in_use, self.driven.session.info
        obeyed = self.driven.session.phase is Phase.SERVING
        before = len(self.driven.sent)
        self.driven.receive(message)
        assert obeyed or held == (self.driven.session.role.occupancy(), self.driven.in_use, self.driven.session.info)
        for answer in self.driven.sent[before:]:
            if isinstance(answer, Reserved):
                self.reserved[answer.reservation.reservation_id] = answer.reservation

    @rule(disaggregated=st.booleans(), prompt=st.integers(1, 17), shared=st.booleans())
    def order_a_prefill(self, disaggregated: bool, prompt: int, shared: bool) -> None:
        self.names += 1
        order = prefill(f"r{self.names}", disaggregated, [7 if shared else 1 + self.names] * prompt)
        self._obeys_only_while_serving(order)

    @rule()
    def reserve(self) -> None:
        self.names += 1
        self._obeys_only_while_serving(reserve(self.names))

    @rule(data=st.data())
    def send_pages(self, data: st.DataObject) -> None:
        self.names += 1
        name = data.draw(st.sampled_from(["unknown", *self.live]))
        self._obeys_only_while_serving(SendPages(name, at_peer(name, 1, self.names)))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._obeys_only_while_serving(Cancel(data.draw(st.sampled_from(["in", *self.live]))))

    @precondition(lambda self: self.reserved and self.driven.session.phase is Phase.SERVING)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.reserved)))
        del self.reserved[name]
        self.driven.receive(Release(name))

    @precondition(lambda self: self.reserved)
    @rule(data=st.data(), corrupt=st.booleans())
    def notify(self, data: st.DataObject, corrupt: bool) -> None:
        reservation = self.reserved.pop(data.draw(st.sampled_from(sorted(self.reserved))))
        notice = HandoffNotice(reservation.reservation_id, "in", 3, (1,), reservation.generations)
        self.driven.perform(self.driven.session.on_notice(notice, int(corrupt), self.driven.now))
        if self.driven.session.reserved_pages(reservation.reservation_id):
            self.reserved[reservation.reservation_id] = reservation

    @rule(role=st.sampled_from(RoleName))
    def switch(self, role: RoleName) -> None:
        self._obeys_only_while_serving(SwitchRole(role, self.driven.session.state.role_epoch))

    @rule(late=st.booleans(), router_id=st.sampled_from(["a", "b"]))
    def acknowledge(self, late: bool, router_id: str) -> None:
        incarnation = self.driven.session.info.incarnation
        phase = self.driven.session.phase
        self.driven.receive(RegisterAck(router_id, 0.5, "0" if late else incarnation))
        if late:
            assert self.driven.session.phase is phase

    @rule(late=st.booleans(), router_id=st.sampled_from(["a", "b", ""]))
    def unknown_to_the_router(self, late: bool, router_id: str) -> None:
        phase = self.driven.session.phase
        self.driven.receive(Reregister("0" if late else self.driven.session.info.incarnation, router_id))
        assert self.driven.session.phase is (phase if late else Phase.LEAVING)
        assert late or not self.driven.session.outbox

    @rule(up=st.booleans())
    def the_routers_link(self, up: bool) -> None:
        self.driven.perform(self.driven.session.on_router_link(up, self.driven.now))
        assert up or self.driven.session.phase is Phase.LEAVING

    @rule()
    def link_is_full(self) -> None:
        self.driven.perform(self.driven.session.on_link_full(self.driven.now))

    @rule(count=st.integers(1, 5))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.driven.step()

    @precondition(lambda self: self.driven.writes)
    @rule(data=st.data(), error=st.sampled_from(["", "the connection broke"]))
    def end_a_write(self, data: st.DataObject, error: str) -> None:
        sent = self.driven.end_write(error, data.draw(st.integers(0, len(self.driven.writes) - 1)))
        assert self.driven.session.phase is not Phase.LEAVING or not sent

    @rule(after_s=st.sampled_from([0.0, 0.1, 0.9]))
    def tick(self, after_s: float) -> None:
        session, keeps = self.driven.session, self.driven.session._keep
        incarnation, held = session.info.incarnation, session.role.occupancy().request_ids
        self.driven.tick(after_s)
        if session.info.incarnation == incarnation:
            return
        assert not self.driven.writes
        self.reserved.clear()
        assert session.phase is Phase.REGISTERING
        now_held = session.role.occupancy()
        assert now_held.reservation_ids == ()
        kept = set(now_held.request_ids)
        assert kept <= set(held)
        register = self.driven.sent[-1]
        assert isinstance(register, Register)
        assert kept <= {one.request_id for one in register.held}
        assert keeps or (not register.held and self.driven.in_use == 0)

    @invariant()
    def nothing_but_the_registration_and_signs_of_life_is_sent_before_the_acknowledgement(self) -> None:
        if self.driven.session.phase is Phase.REGISTERING:
            kinds = [type(message) for message in [*self.driven.sent, *self.driven.session.outbox]]
            registered = len(kinds) - kinds[::-1].index(Register)
            assert set(kinds[registered:]) <= {Alive}

    @invariant()
    def no_page_is_reused_while_a_write_reads_it_or_a_peer_may_write_it(self) -> None:
        pool = self.driven.session.state.pool
        pool.check_integrity()
        assert all(pool._references[page] for write in self.driven.writes for page in write.source_pages)
        for reservation in self.reserved.values():
            assert all(pool._references[page] for page in reservation.page_ids)
            assert tuple(pool.generation(page) for page in reservation.page_ids) == reservation.generations

    @invariant()
    def its_count_of_writes_is_the_transports(self) -> None:
        assert self.driven.session.writes_in_flight == len(self.driven.writes)

    def teardown(self) -> None:
        """Whatever happened, every page comes back."""
        while self.driven.writes:
            self.driven.end_write()
        self.driven.tick()
        self.driven.acknowledge()
        self.driven.receive(*(Release(name) for name in self.reserved), *(Cancel(name) for name in self.live))
        while self.driven.writes:
            self.driven.end_write()
        assert self.driven.in_use == 0


AnySchedule.TestCase.settings = settings(deadline=None, max_examples=100, stateful_step_count=60)
TestAnySchedule = AnySchedule.TestCase
