"""A worker's session: what it obeys and sends in which phase, and what it keeps when it registers again."""

from __future__ import annotations

import pytest

from baton.protocol.handoff import HandoffNotice
from baton.protocol.messages import (
    AdoptSequence,
    Cancel,
    FirstToken,
    HandoffStalled,
    Release,
    RequestFailed,
    Reserved,
    SendPages,
    SequenceEnded,
)
from baton.protocol.request import FinishReason
from baton.protocol.session_messages import (
    Alive,
    LoadReport,
    PagesChanged,
    Register,
    RegisterAck,
    Reregister,
    RoleChanged,
    SwitchRole,
)
from baton.protocol.worker import RoleName
from baton.worker.core.session_commands import Exit, NewTransport
from baton.worker.session import ALIVE_EVERY_S, FINISH_WRITES_S, Phase
from tests.worker.sessions import STALL_S, HandDriven, at_peer, prefill, reserve, session


def _serving(role: RoleName = RoleName.DECODE) -> HandDriven:
    driven = HandDriven(session(role))
    driven.acknowledge()
    driven.open_gateway()
    driven.sent.clear()
    return driven


def _decoding() -> HandDriven:
    """It has answered two tokens of a request, and holds a reservation."""
    driven = _serving()
    assert Reserved in driven.receive(prefill("whole"), reserve())
    assert driven.step() == [FirstToken]
    assert driven.step() == []
    assert [token.index for token in driven.tokens()] == [0, 1]
    return driven


def _sending() -> HandDriven:
    """A write of its only request is on its way."""
    driven = _serving(RoleName.PREFILL)
    driven.receive(prefill("r", disaggregated=True), SendPages("r", at_peer("r", 3)))
    driven.step()
    assert len(driven.writes) == driven.session.writes_in_flight == 1
    return driven


def test_an_order_before_the_acknowledgement_was_for_the_last_incarnation_and_is_ignored() -> None:
    driven = HandDriven(session())
    assert driven.receive(reserve(), RegisterAck("router", 0.5, "0"), reserve()) == [Register]
    assert driven.in_use == 0
    assert driven.receive(RegisterAck("router", 0.5, "1"), reserve()) == [PagesChanged, Reserved]


def test_a_worker_sends_signs_of_life_until_it_is_acknowledged_and_then_its_pages_and_load() -> None:
    driven = HandDriven(session())
    assert driven.send() == [Register]
    assert driven.session.wait_s(driven.now) == ALIVE_EVERY_S
    assert driven.tick(ALIVE_EVERY_S / 2) == []
    assert driven.tick(ALIVE_EVERY_S / 2) == driven.tick(ALIVE_EVERY_S) == [Alive]
    assert driven.acknowledge() == [PagesChanged]
    assert driven.tick() == [LoadReport]
    assert driven.tick(10.0) == [LoadReport]


def test_a_worker_given_up_by_its_own_router_keeps_nothing_and_obeys_nothing_until_it_is_acknowledged() -> None:
    driven = _decoding()
    driven.receive(Reregister("1", "router"))
    assert driven.tick() == [Register]
    (register,) = driven.sent[-1:]
    assert isinstance(register, Register)
    assert (register.info.incarnation, register.info.endpoint.agent, register.held) == ("2", "w:2", ())
    assert driven.receive(reserve(), Reregister("1", "router")) == []
    assert driven.in_use == 0
    assert driven.session.info.incarnation == "2"


def test_a_sequence_decodes_and_reaches_its_gateway_in_every_step_while_its_router_is_replaced() -> None:
    driven = _decoding()
    driven.receive(SendPages("whole", at_peer("whole", 5)))
    driven.perform(driven.session.on_router_link(False, driven.now))
    index = 2
    for _ in range(3):
        assert driven.session.phase is Phase.LEAVING
        assert driven.tick() == []
        assert driven.step() == []
        assert [token.index for token in driven.tokens()] == [index]
        index += 1
    assert driven.end_write() == []
    assert driven.tick() == [Register]
    register = driven.sent[-1]
    assert isinstance(register, Register)
    assert [(one.request_id, one.num_tokens) for one in register.held] == [("whole", index)]
    assert driven.session.role.occupancy().reservation_ids == ()  # its writer may be anywhere
    assert driven.step() == []
    driven.acknowledge("another")
    driven.sent.clear()
    driven.receive(AdoptSequence("whole", "g", index + 1), AdoptSequence("unknown", "g", 0))
    (failed,) = driven.sent
    assert isinstance(failed, RequestFailed)
    assert (failed.request_id, failed.error) == ("unknown", "NotFound")
    assert driven.step() == []
    assert [token.index for token in driven.tokens()] == [index, index + 1], "each once: it was attached"


def test_an_end_that_the_router_did_not_receive_is_sent_again_to_the_one_that_adopts_the_sequence() -> None:
    driven = _decoding()
    driven.perform(driven.session.on_router_link(False, driven.now))
    while driven.session.role.occupancy().request_ids:
        assert driven.step() == []
    last = driven.tokens()[-1]
    assert (last.index, last.finish) == (19, FinishReason.LENGTH)
    driven.tick()
    driven.acknowledge("another")
    assert driven.receive(AdoptSequence("whole", "g", 18)) == [SequenceEnded]
    assert driven.sent[-1] == SequenceEnded("whole", FinishReason.LENGTH, 20)
    assert [(token.index, token.finish) for token in driven.tokens()] == [(18, None), (19, FinishReason.LENGTH)]


def test_a_late_acknowledgement_of_an_earlier_incarnation_is_ignored() -> None:
    driven = _serving()
    driven.receive(Reregister("1", "another"))
    driven.tick()
    assert driven.receive(RegisterAck("another", 0.5, "1"), reserve()) == []
    assert Reserved in driven.receive(RegisterAck("another", 0.5, "2"), reserve())


def test_a_full_link_leads_to_one_registration_with_the_present_state() -> None:
    driven = _decoding()
    driven.session.plan(driven.now)
    for _ in range(5):
        driven.perform(driven.session.on_link_full(driven.now))
        driven.perform(driven.session.tick(driven.now, idle=True))
        assert [type(message) for message in driven.session.outbox] == [Register]
    assert driven.session.info.incarnation == "2"
    (register,) = driven.session.outbox
    assert isinstance(register, Register)
    assert register.held[0].request_id == "whole"


@pytest.mark.parametrize("router_id", ["router", "another"])
def test_a_worker_waits_for_its_writes_before_it_registers_again_and_exits_if_they_do_not_end(router_id: str) -> None:
    for ended in (True, False):
        driven = _sending()
        driven.receive(Reregister("1", router_id))
        assert driven.tick(FINISH_WRITES_S / 2) == []
        assert driven.in_use
        assert driven.session.expects_peers
        if ended:
            assert driven.end_write() == []
            assert driven.tick() == [Register]
            assert driven.in_use == 0
        else:
            assert driven.tick(FINISH_WRITES_S) == []
            assert [command for command in driven.commands if isinstance(command, Exit | NewTransport)] == [
                Exit("w cannot re-register: writes to peers do not end.")
            ]


def test_a_stalled_write_is_given_up_but_its_pages_are_held_until_it_ends() -> None:
    driven = _sending()
    while not any(isinstance(message, HandoffStalled) for message in driven.sent):
        assert driven.now < STALL_S + 2.0
        driven.tick(0.5)
    driven.receive(Cancel("r"))
    assert driven.in_use == 1
    assert driven.session.writes_in_flight == 1
    driven.end_write()
    assert driven.in_use == 0


def test_a_role_is_switched_once_it_holds_nothing() -> None:
    driven = _decoding()
    driven.receive(SwitchRole(RoleName.PREFILL, 1))
    refused = driven.sent[-1]
    assert isinstance(refused, RoleChanged)
    assert refused.error
    driven.receive(Cancel("whole"), Release("in/1"), SwitchRole(RoleName.PREFILL, 1))
    assert driven.sent[-1] == RoleChanged(RoleName.PREFILL, 1)
    assert (driven.session.info.role, driven.session.info.role_epoch) == (RoleName.PREFILL, 1)
    assert LoadReport in driven.tick()


def test_a_sequence_that_arrives_where_it_runs_already_gives_its_pages_back() -> None:
    driven = _serving()
    for number in (1, 2):
        driven.receive(reserve(number))
        (granted,) = [one.reservation for one in driven.sent if isinstance(one, Reserved)][number - 1 :]
        notice = HandoffNotice(granted.reservation_id, "in", 3, (1,), granted.generations)
        driven.perform(driven.session.on_notice(notice, 0, driven.now))
        driven.send()
    driven.receive(Cancel("in"))
    assert driven.in_use == 0
