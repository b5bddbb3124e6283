"""What a gateway sends the router for a client, and what that client gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baton.gateway.core import session, stopped
from baton.gateway.core.commands import (
    SendToRouter,
    ShowTokens,
)
from baton.gateway.core.session import END_WAIT_S
from baton.gateway.core.stopped import FENCE_S, StoppedRequests
from baton.protocol.errors import Cancelled, DeadlineExceeded, InvalidRequest, Overloaded
from baton.protocol.gateway_messages import (
    RequestEnded,
    StopRequest,
    Submit,
)
from baton.protocol.messages import Work
from baton.protocol.prefix_hash import page_hashes, page_keys, tenant_root
from baton.protocol.request import FinishReason, Request
from tests.gateway.core.one_session import arrive, ask, end_of, sent, shown, start
from tests.gateway.core.small_cluster import MODEL


def test_a_request_is_submitted_with_its_page_keys_its_age_and_its_time_left() -> None:
    gateway = start()
    asked = replace(ask(), arrival_s=3.0, deadline_s=9.0, priority=2, tenant="t")
    (submit,) = sent(gateway.open(asked, 5.0), Submit)
    keys = page_keys(page_hashes(asked.prompt, MODEL.page_size, tenant_root(MODEL.model_id, "t", False)))
    assert submit == Submit(
        *("r", asked.digest, 5, 100, keys, Work(asked)),
        tenant="t",
        priority=2,
        age_s=2.0,
        deadline_in_s=4.0,
        called_at_s=3.0,
    )


def test_a_client_that_resumes_gets_what_follows_and_its_last_token_is_computed_again() -> None:
    gateway = start()
    (submit,) = sent(gateway.open(ask(), 0.0, emitted=(97, 98, 99), resume_from=3), Submit)
    assert (submit.resumed, submit.num_emitted, submit.work) == (True, 2, Work(ask(), (97, 98)))
    assert shown(arrive(gateway, 2, 3)) == [3]


def test_a_client_that_resumes_without_ids_gets_what_follows_of_the_whole_output() -> None:
    gateway = start()
    (submit,) = sent(gateway.open(ask(), 0.0, resume_from=2), Submit)
    assert (submit.resumed, submit.num_emitted) == (True, 0)
    assert shown(arrive(gateway, 0, 1, 2)) == [2]


def test_a_client_that_had_passed_a_stop_string_gets_the_end_at_once() -> None:
    commands = start().open(ask(stop=("b",)), 0.0, emitted=(97, 98, 99), resume_from=3)
    assert len(commands) == 1 and end_of(commands).reason is FinishReason.STOP


def test_the_number_of_streams_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_STREAMS", 1)
    gateway = start()
    gateway.open(ask(), 0.0)
    with pytest.raises(Overloaded):
        gateway.open(ask("other"), 0.0)
    assert len(gateway.open(ask(), 0.0)) == 1  # The live one again


def test_another_reader_of_the_same_request_gets_its_tokens_with_their_text_even_if_its_seed_was_drawn_apart() -> None:
    gateway = start()
    gateway.open(ask(temperature=1.0, seed=1, stop=("cd",)), 0.0)
    arrive(gateway, 0, 1, 2)
    tokens, _ = gateway.open(ask(temperature=1.0, seed=2, stop=("cd",)), 2.0, resume_from=1)
    assert isinstance(tokens, ShowTokens)
    assert [(token.index, token.text) for token in tokens.tokens] == [(1, "b"), (2, "")]
    assert shown(arrive(gateway, 3)) == [3]


@pytest.mark.parametrize(
    "other",
    [
        replace(ask(), prompt=(1,)),
        ask(max_tokens=5),
        replace(ask(), tenant="other"),
    ],
)
def test_an_id_that_another_live_request_has_is_refused(other: Request) -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    with pytest.raises(InvalidRequest, match="in use"):
        gateway.open(other, 1.0)
    assert shown(arrive(gateway, 0)) == [0]


def test_a_client_that_leaves_stops_its_request_and_nothing_of_it_remains() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    arrive(gateway, 0, 2)
    commands = gateway.leave("r", DeadlineExceeded("too late"), 1.0)
    assert commands == [SendToRouter(StopRequest("r", 1, None, "DeadlineExceeded", "too late"))]
    assert gateway.streams == {} and gateway.workers.num_gaps == 0
    assert arrive(gateway, 1) == [] and gateway.leave("r", Cancelled(""), 1.0) == []


def test_an_id_is_submitted_again_only_after_the_router_has_ended_its_earlier_request() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    gateway.leave("r", Cancelled(""), 1.0)
    assert gateway.open(ask(), 1.1) == []
    assert arrive(gateway, 0, now=1.2) == []
    assert len(sent(gateway.on_router_message(RequestEnded("r", None, "Cancelled"), 1.3), Submit)) == 1
    assert shown(arrive(gateway, 0, now=1.4)) == [0]


def test_an_id_with_other_content_waits_until_no_token_of_the_earlier_request_can_be_on_its_way() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    gateway.leave("r", Cancelled(""), 1.0)
    gateway.open(ask(max_tokens=5), 1.1)
    assert gateway.on_router_message(RequestEnded("r", None, "Cancelled"), 1.3) == []
    assert arrive(gateway, 0) == [] and gateway.tick(1.0 + stopped.FENCE_S - 0.1) == []
    assert len(sent(gateway.tick(1.0 + stopped.FENCE_S), Submit)) == 1


def test_a_reader_gets_tokens_that_an_earlier_one_did_not_need() -> None:
    gateway = start()
    gateway.open(ask(), 0.0, resume_from=5)
    gateway.open(ask(), 1.0, resume_from=1)
    assert shown(arrive(gateway, 0, 1, 2)) == [1, 2]


def test_a_client_that_comes_back_is_submitted_again_so_that_the_router_knows_who_came_last() -> None:
    gateway = start()
    gateway.open(replace(ask(), arrival_s=0.0), 0.0)
    arrive(gateway, 0)
    (again,) = sent(gateway.open(replace(ask(), arrival_s=5.0), 5.5), Submit)
    assert (again.submission, again.age_s, again.num_emitted, again.resumed) == (1, 0.5, 1, True)
    assert gateway.on_router_message(RequestEnded("r", None, "Cancelled", "taken over"), 5.6) == []  # of the first
    assert shown(arrive(gateway, 1)) == [1]
    refusal = RequestEnded("r", None, "Cancelled", "taken over", submission=1)
    assert end_of(gateway.on_router_message(refusal, 5.7)).error is not None


def test_a_client_that_leaves_a_complete_stream_leaves_nothing_that_waits() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    arrive(gateway, 0, last=0)
    gateway.leave("r", Cancelled(""), 1.1)
    assert gateway.tick(1.0 + END_WAIT_S) == []


def test_a_client_that_leaves_after_the_routers_end_stops_nothing() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    gateway.on_router_message(RequestEnded("r", FinishReason.LENGTH, num_tokens=4), 1.0)
    assert gateway.leave("r", Cancelled(""), 1.1) == []


def test_an_id_whose_request_failed_may_be_used_for_the_same_request_at_once_but_not_for_another() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    gateway.on_router_message(RequestEnded("r", None, "HandoffFailed", "no pages"), 1.0)
    assert gateway.open(ask(max_tokens=5), 1.1) == []
    gateway.leave("r", Cancelled(""), 1.2)
    assert len(sent(gateway.open(ask(), 1.3), Submit)) == 1


def test_an_id_whose_route_never_came_waits_for_the_routers_answer_to_the_stop() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    arrive(gateway, 0, last=0)
    gateway.tick(1.0 + END_WAIT_S)
    assert gateway.open(ask(), 2.1) == []
    assert len(sent(gateway.on_router_message(RequestEnded("r", FinishReason.STOP, num_tokens=1), 2.2), Submit)) == 1


def test_each_stopped_request_is_forgotten_in_time_even_if_an_older_one_was_stopped_again() -> None:
    gateway, stops = start(), StoppedRequests()
    for request_id, now in (("a", 1.0), ("b", 1.5), ("a", 2.0)):
        gateway.open(replace(ask(), request_id=request_id), now)
        stops.add(gateway.streams[request_id], True, now)
    assert stops.expire(1.5 + FENCE_S) == ["b"] and stops.expire(2.0 + FENCE_S) == ["a"] and len(stops) == 0
