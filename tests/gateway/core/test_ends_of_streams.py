"""How a stream ends: when, with what reason, times and route."""

from __future__ import annotations

from dataclasses import replace

from baton.gateway.core import session
from baton.gateway.core.commands import (
    EndStream,
    SendToWorker,
    ShowTokens,
)
from baton.protocol.errors import Overloaded
from baton.protocol.gateway_messages import (
    AttachStreams,
    Placed,
    RequestEnded,
    StepOutput,
    StopRequest,
    StreamPosition,
    Submit,
    TokenOutput,
)
from baton.protocol.handoff import HandoffReport
from baton.protocol.messages import Work
from baton.protocol.request import FinishReason
from tests.gateway.core.one_session import arrive, ask, end_of, sent, shown, start


def test_the_end_waits_for_its_route_and_has_the_times_that_the_gateway_measured() -> None:
    gateway = start()
    gateway.open(replace(ask(), arrival_s=1.0), 1.5)
    gateway.on_router_message(Placed("r", "p", "d"), 2.0)
    first = TokenOutput("r", 0, 97, cached_tokens=4)
    gateway.on_worker_messages("w", "1", [StepOutput((first,))], 3.0)
    assert not [one for one in arrive(gateway, 1, 2, last=2, now=5.0) if isinstance(one, EndStream)]
    report = HandoffReport(pages_sent=3)
    ended = RequestEnded("r", FinishReason.STOP, "", "", None, 3, "p", "d2", 2, 1, report)
    end = end_of(gateway.on_router_message(ended, 5.1))
    assert (end.reason, end.error, end.output_tokens, end.cached_tokens) == (FinishReason.STOP, None, 3, 4)
    assert (end.prefill_worker, end.decode_worker, end.attempts, end.migrations) == ("p", "d2", 2, 1)
    assert end.handoff == report
    times = end.latency
    assert (times.queue_s, times.ttft_s, times.tpot_s, times.total_s) == (1.0, 2.0, 1.0, 4.0)
    assert gateway.streams == {} and len(gateway.stopped) == 0


def test_an_end_whose_route_does_not_come_has_the_workers_of_its_placement_and_stops_the_request() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    gateway.on_router_message(Placed("r", "p", "d"), 0.5)
    arrive(gateway, 0, last=0, now=1.0)
    assert gateway.tick(1.0 + session.END_WAIT_S - 0.1) == []
    commands = gateway.tick(1.0 + session.END_WAIT_S)
    assert sent(commands, StopRequest) == [StopRequest("r", 1, FinishReason.STOP)]
    assert (end_of(commands).prefill_worker, end_of(commands).decode_worker) == ("p", "d")


def test_a_stop_string_stops_the_request_at_once_but_not_among_the_first_min_tokens() -> None:
    gateway = start()
    gateway.open(ask(stop=("b", "cd"), min_tokens=2), 0.0)
    commands = arrive(gateway, 0, 1, 2, 3, 4)
    assert sent(commands, StopRequest) == [StopRequest("r", 4, FinishReason.STOP)]
    assert "".join(token.text for one in commands if isinstance(one, ShowTokens) for token in one.tokens) == "ab"
    assert arrive(gateway, 5) == []
    end = end_of(gateway.on_router_message(RequestEnded("r", FinishReason.STOP, num_tokens=4), 1.1))
    assert (end.reason, end.output_tokens, end.trailing_text) == (FinishReason.STOP, 4, "")


def test_text_that_could_have_begun_a_stop_string_follows_with_the_end() -> None:
    gateway = start()
    gateway.open(ask(stop=("bx",)), 0.0)
    arrive(gateway, 0, 1, last=1)
    end = end_of(gateway.on_router_message(RequestEnded("r", FinishReason.STOP, num_tokens=2), 1.1))
    assert end.trailing_text == "b"


def test_an_error_of_the_router_ends_the_stream_with_its_class_and_when_to_retry() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    end = end_of(gateway.on_router_message(RequestEnded("r", None, "Overloaded", "full", 2.5), 1.0))
    assert isinstance(end.error, Overloaded) and (end.error.message, end.error.retry_after_s) == ("full", 2.5)
    assert end.reason is None


def test_a_complete_answer_is_no_error_whatever_the_router_reports() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    arrive(gateway, 0, last=0)
    end = end_of(gateway.on_router_message(RequestEnded("r", None, "WorkerLost", "died"), 1.1))
    assert (end.reason, end.error) == (FinishReason.STOP, None)


def test_tokens_that_miss_at_the_routers_end_are_asked_for_and_computed_again_if_they_stay_away() -> None:
    gateway = start()
    asked = ask()
    gateway.open(asked, 0.0)
    arrive(gateway, 0, 1)
    ended = RequestEnded("r", FinishReason.LENGTH, num_tokens=4, decode_worker="w")
    assert gateway.on_router_message(ended, 2.0) == [
        SendToWorker("w", AttachStreams((StreamPosition("r", 2, asked.digest),)))
    ]
    (submit,) = sent(gateway.tick(2.0 + session.END_WAIT_S), Submit)
    assert (submit.resumed, submit.num_emitted, submit.work) == (True, 2, Work(asked, (97, 98)))
    gateway.on_router_message(replace(ended, attempts=2, submission=1), 4.0)
    assert shown(commands := arrive(gateway, 2, now=4.1)) == [2] and len(commands) == 1
    end = end_of(arrive(gateway, 3, now=4.2))
    assert (end.reason, end.attempts) == (FinishReason.LENGTH, 2)
