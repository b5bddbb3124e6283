"""Gateways whose links go up, down and full at any moment while sequences come, decode, end and change gateways."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton.protocol.handoff import HandoffNotice, Reservation
from baton.protocol.messages import AdoptSequence, Cancel, RequestFailed, Reserved, RouterMessage
from baton.protocol.session_messages import GatewayLeft, GatewayUnreachable, Register, RegisterAck
from baton.worker.core.gateway_links import FORGET_S, GATEWAY_GRACE_S
from baton.worker.core.session_commands import ConnectGateway, DisconnectGateway, SessionCommand
from baton.worker.session import Phase
from tests.worker.gateways import ModelGateway
from tests.worker.sessions import HandDriven, prefill, reserve, session, token_at

MAX_TOKENS = 20
GATEWAYS = st.sampled_from(["g", "h"])


class AnyGatewaySchedule(RuleBasedStateMachine):
    """A gateway's tokens, with those that come after its last `AttachStreams`, are a gapless prefix of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.driven = HandDriven(session(num_pages=400))
        self.driven.session.state.streams.keep_ended_s = float("inf")
        self.gateways = {name: ModelGateway(name) for name in ("g", "h")}
        self.linked: set[str] = set()
        self.unreachable: set[tuple[str, str]] = set()  # Gateways and their incarnations, as the router has it
        self.reserved: dict[str, Reservation] = {}
        self.homeless: dict[str, int] = {}  # Streams whose gateway has died, and how many tokens their clients have
        self.names = 0
        self.serve()

    def serve(self) -> None:
        """The worker registers, and the router names its gateways."""
        self.driven.tick()
        self.receive(RegisterAck("router", 0.5, self.driven.session.info.incarnation))
        self.receive(*(gateway.joined for gateway in self.gateways.values()))
        assert self.driven.session.phase is Phase.SERVING

    def receive(self, *messages: RouterMessage) -> None:
        self.driven.receive(*messages)
        self.flow()

    def perform(self, commands: Sequence[SessionCommand]) -> None:
        self.driven.perform(list(commands))
        self.flow()

    def flow(self) -> None:
        """Do what the session has commanded."""
        commands, self.driven.commands = self.driven.commands, []
        for command in commands:
            match command:
                case ConnectGateway(joined):
                    assert joined.gateway not in self.linked
                    self.linked.add(joined.gateway)
                case DisconnectGateway(gateway):
                    self.linked.remove(gateway)
                    self.gateways[gateway].break_link(0)
        self.driven.send()
        reports, self.driven.sent = self.driven.sent, []
        for message in reports:
            assert not isinstance(message, RequestFailed)
            if isinstance(message, Register):
                self.unreachable.clear()
            elif isinstance(message, GatewayUnreachable):
                key = message.gateway, message.incarnation
                (self.unreachable.discard if message.reachable else self.unreachable.add)(key)
            elif isinstance(message, Reserved):
                self.reserved[message.request_id] = message.reservation
        to_gateways, self.driven.to_gateways = self.driven.to_gateways, []
        for sent in to_gateways:
            assert sent.gateway in self.linked
            if not self.gateways[sent.gateway].send(sent.message):
                self.driven.session.on_gateway_full(sent.gateway, self.driven.now)

    @property
    def streams(self) -> list[tuple[str, str]]:
        """Gateway and request of each live stream."""
        return [(name, request_id) for name, gateway in self.gateways.items() for request_id in gateway.streams]

    @property
    def serving(self) -> bool:
        return self.driven.session.phase is Phase.SERVING

    # Requests

    @precondition(lambda self: self.serving)
    @rule(gateway=st.sampled_from(["g", "h", ""]))
    def a_request_comes(self, gateway: str) -> None:
        self.names += 1
        if gateway:
            self.gateways[gateway].streams[f"r{self.names}"] = 0
        self.receive(prefill(f"r{self.names}", gateway=gateway))

    @precondition(lambda self: self.serving)
    @rule(gateway=GATEWAYS, first_arrived=st.booleans())
    def a_sequence_is_handed_over(self, gateway: str, first_arrived: bool) -> None:
        """Its first token was sent by another worker, and may have been lost."""
        self.names += 1
        name, driven = f"r{self.names}", self.driven
        self.gateways[gateway].streams[name] = int(first_arrived)
        if not first_arrived:
            self.gateways[gateway].gaps.add(name)
        self.receive(reserve(name=name, max_tokens=MAX_TOKENS, gateway=gateway))
        reservation = self.reserved[name]
        notice = HandoffNotice(reservation.reservation_id, name, 3, (token_at(name, 0),), reservation.generations)
        self.perform(driven.session.on_notice(notice, 0, driven.now))

    @precondition(lambda self: self.serving and self.streams)
    @rule(data=st.data(), to=GATEWAYS)
    def a_client_resumes(self, data: st.DataObject, to: str) -> None:
        """It has at most what its earlier gateway has."""
        name, request_id = data.draw(st.sampled_from(self.streams))
        have = self.gateways[name].streams[request_id]
        if name != to:
            have = data.draw(st.integers(0, have))
            del self.gateways[name].streams[request_id]
        self.resume(request_id, to, have)

    @precondition(lambda self: self.serving and self.homeless)
    @rule(data=st.data(), to=GATEWAYS)
    def a_client_of_a_dead_gateway_resumes(self, data: st.DataObject, to: str) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.homeless)))
        self.resume(request_id, to, self.homeless.pop(request_id))

    def resume(self, request_id: str, to: str, have: int) -> None:
        for gateway in self.gateways.values():
            gateway.gaps.discard(request_id)
        self.gateways[to].gaps.add(request_id)
        self.gateways[to].streams[request_id] = have
        self.receive(AdoptSequence(request_id, to, have))

    @precondition(lambda self: self.serving and self.streams)
    @rule(data=st.data())
    def a_client_leaves(self, data: st.DataObject) -> None:
        name, request_id = data.draw(st.sampled_from(self.streams))
        del self.gateways[name].streams[request_id]
        self.receive(Cancel(request_id))

    @rule(count=st.integers(1, 5))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.driven.step()
            self.flow()

    # Links to gateways

    @rule(name=GATEWAYS)
    def a_link_is_up(self, name: str) -> None:
        if name in self.linked:
            self.gateways[name].up = True
            self.perform(self.driven.session.on_gateway_link(name, True, self.driven.now))

    @rule(name=GATEWAYS)
    def a_link_opens(self, name: str) -> None:
        self.gateways[name].full = False
        self.a_link_is_up(name)
        self.settle(name)

    @rule(name=GATEWAYS, lost=st.integers(0, 4))
    def a_link_breaks(self, name: str, lost: int) -> None:
        if name in self.linked:
            self.gateways[name].break_link(lost)
            self.perform(self.driven.session.on_gateway_link(name, False, self.driven.now))

    @rule(name=GATEWAYS, full=st.booleans())
    def a_gateway_takes_frames_or_not(self, name: str, full: bool) -> None:
        self.gateways[name].full = full

    @rule(name=GATEWAYS, count=st.integers(1, 5))
    def frames_arrive_at_a_gateway(self, name: str, count: int) -> None:
        gateway = self.gateways[name]
        for _ in range(min(count, len(gateway.arriving))):
            gateway.receive()

    @rule(name=GATEWAYS)
    def an_answer_arrives_at_the_worker(self, name: str) -> None:
        gateway = self.gateways[name]
        if gateway.leaving:
            message = gateway.answer()
            self.perform(self.driven.session.on_gateway_message(name, message, self.driven.now))

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def a_gateway_asks_again(self, data: st.DataObject) -> None:
        name, request_id = data.draw(st.sampled_from(self.streams))
        if self.gateways[name].up:
            self.gateways[name].ask(request_id)

    @precondition(lambda self: self.serving)
    @rule(name=GATEWAYS)
    def a_gateway_restarts(self, name: str) -> None:
        self.restart(name)
        self.unreachable.discard(name)  # the report was about the former incarnation
        self.receive(self.gateways[name].joined)

    @precondition(lambda self: self.serving)
    @rule(name=GATEWAYS, late=st.booleans())
    def a_gateway_leaves(self, name: str, late: bool) -> None:
        gateway = self.gateways[name]
        if late:
            self.receive(GatewayLeft(name, "0"))
            return
        self.receive(GatewayLeft(name, gateway.joined.incarnation))
        assert name not in self.linked
        self.restart(name)

    def restart(self, name: str) -> None:
        self.homeless |= self.gateways[name].streams
        self.gateways[name].restart()

    # The router, and time

    @rule()
    def the_router_is_lost(self) -> None:
        self.perform(self.driven.session.on_router_link(False, self.driven.now))
        self.tick(0.0)

    @precondition(lambda self: not self.serving)
    @rule()
    def the_worker_registers(self) -> None:
        self.serve()

    @rule(after_s=st.sampled_from([0.0, 0.1, GATEWAY_GRACE_S / 2, FORGET_S]))
    def tick(self, after_s: float) -> None:
        self.driven.tick(after_s)
        self.flow()

    # What must hold

    @invariant()
    def a_gateway_with_an_open_link_is_not_reported_unreachable(self) -> None:
        reached = {(gateway.name, gateway.joined.incarnation) for gateway in self.gateways.values() if gateway.open}
        assert not self.serving or not reached & self.unreachable

    @invariant()
    def the_worker_reads_no_page_that_another_sequence_has(self) -> None:
        self.driven.session.state.pool.check_integrity()

    def teardown(self) -> None:
        """Once the links hold, every gateway has the whole output of each of its streams."""
        self.serve()
        for _ in range(2):
            for name, gateway in self.gateways.items():
                gateway.full = False
                if not gateway.up:
                    self.a_link_is_up(name)
            self.tick(0.1)
            for name in self.gateways:
                self.settle(name)
        while self.driven.session.role.occupancy().request_ids:
            self.steps(1)
        for name in self.gateways:
            self.settle(name)
        for _, gateway in sorted(self.gateways.items()):
            assert set(gateway.streams.values()) <= {MAX_TOKENS}
        assert self.driven.in_use == 0

    def settle(self, name: str) -> None:
        """Every frame arrives, and what is missing is asked for."""
        gateway = self.gateways[name]
        for request_id in sorted(gateway.gaps & gateway.streams.keys()):
            gateway.ask(request_id)
        while gateway.arriving or gateway.leaving:
            self.frames_arrive_at_a_gateway(name, 5)
            self.an_answer_arrives_at_the_worker(name)


AnyGatewaySchedule.TestCase.settings = settings(deadline=None, max_examples=200, stateful_step_count=80)
TestAnyGatewaySchedule = AnyGatewaySchedule.TestCase
