"""What a gateway does for a router that asks, goes or comes back."""

from __future__ import annotations

from dataclasses import replace

from baton.gateway.core import session, stopped
from baton.gateway.core.commands import (
    SendToRouter,
)
from baton.protocol.errors import Cancelled, DeadlineExceeded, NoRouter
from baton.protocol.gateway_messages import (
    AskEmitted,
    EmittedTokens,
    GatewayRegistered,
    RegisterGateway,
    RequestEnded,
    StopRequest,
    Submit,
)
from baton.protocol.messages import Work
from baton.protocol.request import FinishReason
from baton.protocol.session_messages import Reregister
from tests.gateway.core.one_session import GRACE_S, arrive, ask, end_of, sent, shown, start
from tests.gateway.core.small_cluster import INFO


def test_the_router_gets_what_was_emitted_and_what_had_come_early_is_computed_again() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    arrive(gateway, 0, 1, 3)
    commands = gateway.on_router_message(AskEmitted("r"), 1.0)
    assert commands == [SendToRouter(EmittedTokens("r", Work(ask(), (97, 98)), 2))]
    assert gateway.workers.num_gaps == 0
    assert shown(arrive(gateway, 2)) == [2]


def test_the_router_learns_that_there_is_nothing_to_compute_again() -> None:
    gateway = start()
    assert [one.error for one in sent(gateway.on_router_message(AskEmitted("gone"), 1.0), StopRequest)] == ["Cancelled"]
    gateway.open(ask(), 0.0)
    arrive(gateway, 0, last=0)
    stops = sent(gateway.on_router_message(AskEmitted("r"), 1.0), StopRequest)
    assert stops == [StopRequest("r", 1, FinishReason.STOP)]


def test_streams_go_on_without_the_router_and_end_without_their_route() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    arrive(gateway, 0)
    gateway.on_router_link(False, 1.0)
    assert gateway.tick(1000.0) == []
    commands = arrive(gateway, 1, 2, last=2, now=1000.0)
    assert shown(commands) == [1, 2] and end_of(commands).reason is FinishReason.STOP


def test_a_stream_that_waits_for_its_route_ends_when_the_router_goes() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    arrive(gateway, 0, last=0)
    assert end_of(gateway.on_router_link(False, 1.1)).reason is FinishReason.STOP


def test_a_stream_without_any_token_waits_for_the_router_for_a_while_as_does_a_new_one() -> None:
    gateway = start()
    gateway.open(ask("old"), 0.0)
    gateway.on_router_link(False, 5.0)
    assert gateway.open(ask("new"), 6.0) == []
    assert gateway.tick(5.0 + GRACE_S - 0.1) == []
    assert isinstance(end_of(gateway.tick(5.0 + GRACE_S)).error, NoRouter)
    assert end_of(gateway.tick(6.0 + GRACE_S)).request_id == "new"


def test_a_deadline_holds_without_the_router_too() -> None:
    gateway = start()
    gateway.open(replace(ask(), deadline_s=3.0), 0.0)
    arrive(gateway, 0)
    gateway.on_router_link(False, 1.0)
    assert gateway.tick(2.9) == []
    assert isinstance(end_of(gateway.tick(3.0)).error, DeadlineExceeded)


def test_a_router_that_comes_gets_the_streams_that_it_may_run_and_then_new_ones() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    arrive(gateway, 0, 1)
    gateway.on_router_link(False, 2.0)
    gateway.open(ask("new"), 2.5)
    commands = gateway.on_router_link(True, 3.0)
    assert sent(commands, RegisterGateway) == [RegisterGateway(INFO, ("r",))]
    submits = [(one.request_id, one.resumed, one.num_emitted) for one in sent(commands, Submit)]
    assert submits == [("r", True, 2), ("new", False, 0)]


def test_reports_from_before_the_registration_are_outdated() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    gateway.on_router_link(False, 1.0)
    gateway.on_router_link(True, 2.0)
    assert gateway.on_router_message(RequestEnded("r", None, "Cancelled", "not listed"), 2.1) == []
    assert gateway.on_router_message(AskEmitted("r"), 2.1) == []
    gateway.on_router_message(GatewayRegistered("router", "1"), 2.2)
    assert len(gateway.on_router_message(AskEmitted("r"), 2.3)) == 1


def test_a_router_that_does_not_know_the_gateway_gets_its_registration_but_not_twice_in_a_second() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    assert gateway.on_router_message(Reregister("1", "router"), 0.5) == []
    commands = gateway.on_router_message(Reregister("1", "router"), 2.0)
    assert sent(commands, RegisterGateway) == [RegisterGateway(INFO, ("r",))] and len(sent(commands, Submit)) == 1


def test_a_request_that_comes_back_while_the_router_is_away_continues_what_the_router_may_still_run() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    gateway.on_router_link(False, 1.0)
    gateway.leave("r", Cancelled(""), 1.0)
    gateway.tick(3.9)
    gateway.open(ask(), 4.0)
    commands = gateway.on_router_link(True, 5.0)
    assert sent(commands, RegisterGateway)[0].request_ids == ("r",)
    assert [one.resumed for one in sent(commands, Submit)] == [True]
    gateway.on_router_message(GatewayRegistered("router", "1"), 5.1)
    error = end_of(gateway.on_router_message(RequestEnded("r", None, "NoWorkers", "none"), 5.2)).error
    assert error is not None and error.message == "none"


def test_another_request_of_an_id_that_the_router_may_still_run_is_not_listed_and_waits() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    gateway.on_router_link(False, 1.0)
    gateway.leave("r", Cancelled(""), 1.0)
    gateway.open(ask(max_tokens=5), 4.0)
    assert gateway.tick(4.5) == []
    commands = gateway.on_router_link(True, 5.0)
    assert sent(commands, RegisterGateway)[0].request_ids == () and sent(commands, Submit) == []
    gateway.on_router_message(GatewayRegistered("router", "1"), 5.0)
    assert gateway.tick(5.0 + stopped.FENCE_S - 0.1) == []
    assert len(sent(gateway.tick(5.0 + stopped.FENCE_S), Submit)) == 1


def test_a_request_of_a_stopped_id_waits_for_the_router_however_long_that_takes() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    gateway.leave("r", Cancelled(""), 1.0)
    gateway.open(ask(), 2.0)
    assert gateway.tick(60.0) == []
    assert len(sent(gateway.on_router_message(RequestEnded("r", None, "Cancelled", ""), 61.0), Submit)) == 1


def test_the_load_counts_streams_requests_and_tokens() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    arrive(gateway, 0, 1)
    gateway.open(ask("other"), 0.0)
    gateway.leave("other", Cancelled(""), 0.0)
    load = gateway.load(1.5, 7)
    assert (load.streams, load.tokens, load.requests, load.cpu_s, load.waiting_bytes) == (1, 2, 2, 1.5, 7)


def test_messages_that_arrive_after_the_link_broke_send_nothing() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    gateway.on_router_link(False, 1.0)
    assert gateway.on_router_message(AskEmitted("r"), 1.1) == []
    assert gateway.on_router_message(GatewayRegistered("router", "1"), 1.1) == []
    assert gateway.on_router_message(AskEmitted("r"), 1.1) == []
    assert gateway.on_router_message(Reregister("1", "router"), 50.0) == []
    assert gateway.leave("r", Cancelled(""), 50.0) == []


def test_missing_tokens_are_submitted_once_when_the_router_comes_back() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    gateway.on_router_message(RequestEnded("r", FinishReason.LENGTH, num_tokens=4), 2.0)
    gateway.on_router_link(False, 2.1)
    assert len(sent(gateway.on_router_link(True, 2.2), Submit)) == 1
    assert gateway.tick(3.1) == []


def test_a_stream_that_waits_for_its_route_ends_when_the_router_does_not_know_the_gateway() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    arrive(gateway, 0, last=0, now=2.0)
    commands = gateway.on_router_message(Reregister("1", "router"), 2.1)
    assert end_of(commands).reason is FinishReason.STOP and sent(commands, RegisterGateway)[0].request_ids == ()


def test_a_registration_that_the_router_does_not_answer_is_repeated() -> None:
    gateway = start(up=False)
    gateway.on_router_link(True, 0.0)
    gateway.open(ask(), 0.5)
    assert gateway.tick(session.ANSWER_WITHIN_S - 0.1) == []
    commands = gateway.tick(session.ANSWER_WITHIN_S)
    assert len(sent(commands, RegisterGateway)) == 1 and [one.resumed for one in sent(commands, Submit)] == [True]
    gateway.on_router_message(GatewayRegistered("router", "1"), 4.0)
    assert gateway.tick(20.0) == []
