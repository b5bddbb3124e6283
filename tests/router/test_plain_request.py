"""A request on its way through the core, message by message, and what its gateway is sent."""

from __future__ import annotations

from baton.protocol.gateway_messages import AskEmitted, EmittedTokens, Placed, RequestEnded, StopRequest
from baton.protocol.handoff import HandoffOutcome, HandoffReport, Reservation
from baton.protocol.messages import (
    AdoptSequence,
    Cancel,
    FirstToken,
    HandoffCommitted,
    HandoffEnded,
    Prefill,
    Release,
    Reserve,
    Reserved,
    SendPages,
    SequenceEnded,
    Work,
)
from baton.protocol.request import FinishReason, Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.router.core.commands import Command, RequestCompleted
from baton.router.core.core import RouterCore
from baton.router.core.live_request import Phase
from baton.router.core.requests import COMMIT_WITHIN_S
from baton.router.policy.policies import make_policy
from tests.router.hand_driven import GATEWAY, ask, end_of, join, join_gateway, submission, to_gateways, to_workers

REQUEST = Request("r", tuple(range(40)), SamplingParams(max_tokens=20))
REPORT = HandoffReport(pages_sent=3)


def cluster() -> RouterCore:
    """A prefill worker and two decode workers; requests are always handed over."""
    core = RouterCore("router", make_policy("least_loaded"))
    core.requests.strict = True
    for name in ("prefill-0", "decode-0", "decode-1"):
        join(core, name, RoleName(name.split("-")[0]))
    return core


def delivered(core: RouterCore, now: float = 1.0) -> tuple[str, str]:
    """The request's pages are at its decode worker; returns its name and the reservation."""
    commands = ask(core, REQUEST, now)
    ((target, reserve),) = to_workers(commands, Reserve)
    reservation = Reservation(reserve.reservation_id, "r", f"{target}:1", (1, 2, 3), (0, 0, 0), 0, 40)
    ((_, send),) = to_workers(core.on_message(target, Reserved(reservation), now), SendPages)
    assert send.reservation == reservation
    sent = HandoffEnded("r", reserve.reservation_id, HandoffOutcome.DELIVERED, REPORT)
    core.on_frame("prefill-0", "1", [FirstToken("r"), sent], now + 0.1)
    return target, reserve.reservation_id


def decoding(core: RouterCore, now: float = 1.0) -> str:
    """The request is handed over, and decodes; returns its decode worker."""
    target, reservation_id = delivered(core, now)
    core.on_message(target, HandoffCommitted("r", reservation_id), now + 0.1)
    assert core.requests.live["r"].phase is Phase.DECODING
    return target


def completed(commands: list[Command]) -> list[str]:
    return [one.completion.request_id for one in commands if isinstance(one, RequestCompleted)]


def test_the_work_reaches_its_workers_as_it_came_and_its_gateway_learns_where() -> None:
    core = cluster()
    commands = ask(core, REQUEST, 1.0)
    ((worker, prefill),) = to_workers(commands, Prefill)
    ((_, reserve),) = to_workers(commands, Reserve)
    work = submission(REQUEST).work
    assert (worker, prefill.work, prefill.gateway, prefill.disaggregated) == ("prefill-0", work, GATEWAY, True)
    assert (reserve.work, reserve.gateway, reserve.growth_tokens) == (work, GATEWAY, 0)
    assert to_gateways(commands, Placed) == [(GATEWAY, Placed("r", "prefill-0"))]  # the decode worker is open


def test_its_end_has_its_length_its_way_and_its_handoff() -> None:
    core = cluster()
    target = decoding(core)
    commands = core.on_message(target, SequenceEnded("r", FinishReason.STOP, 7), 2.0)
    assert to_gateways(commands, RequestEnded) == [
        (GATEWAY, RequestEnded("r", FinishReason.STOP, "", "", None, 7, "prefill-0", target, 1, 0, REPORT))
    ]
    assert completed(commands) == ["r"]
    assert not core.live
    assert not core.state.workers[target].running


def test_a_complete_stream_stops_its_worker() -> None:
    core = cluster()
    target = decoding(core)
    commands = core.on_message(GATEWAY, StopRequest("r", 5, FinishReason.STOP), 2.0)
    assert (target, Cancel("r")) in to_workers(commands, Cancel)
    assert (end_of(commands).reason, end_of(commands).num_tokens) == (FinishReason.STOP, 5)
    assert not core.live


def test_after_its_first_token_a_lost_request_is_computed_again_with_what_its_gateway_has() -> None:
    core = cluster()
    target = decoding(core)
    lost = core.on_worker_lost(target, 2.0)
    assert to_gateways(lost, AskEmitted) == [(GATEWAY, AskEmitted("r"))]
    assert not to_workers(lost, Prefill)
    work = Work(REQUEST, (9, 8, 7))
    commands = core.on_message(GATEWAY, EmittedTokens("r", work, 3), 2.1)
    ((_, prefill),) = to_workers(commands, Prefill)
    ((other, reserve),) = to_workers(commands, Reserve)
    assert prefill.work == reserve.work == work
    assert other != target


def test_before_its_first_token_a_lost_request_is_placed_again_at_once() -> None:
    core = cluster()
    join(core, "prefill-1", RoleName.PREFILL)
    ((worker, _),) = to_workers(ask(core, REQUEST, 1.0), Prefill)
    commands = core.on_worker_lost(worker, 2.0)
    assert not to_gateways(commands, AskEmitted)
    ((other, _),) = to_workers(commands, Prefill)
    assert other != worker


def test_a_handoff_whose_notice_was_lost_is_given_up_and_the_request_starts_over() -> None:
    core = cluster()
    target, reservation_id = delivered(core)
    for name in ("prefill-0", "decode-0", "decode-1"):
        core.state.workers[name].last_message_s = 1e6  # they live
    core.gateways.by_name[GATEWAY].last_message_s = 1e6
    assert not core.tick(1.1 + COMMIT_WITHIN_S - 0.1)
    commands = core.tick(1.1 + COMMIT_WITHIN_S + 0.1)
    assert to_workers(commands, Cancel) == [(target, Cancel("r"))]
    assert to_workers(commands, Release) == [(target, Release(reservation_id))]
    assert to_gateways(commands, AskEmitted) == [(GATEWAY, AskEmitted("r"))]
    late = core.on_message(target, HandoffCommitted("r", reservation_id), 8.0)
    assert not late and core.requests.live["r"].phase is Phase.ASKING
    again = core.on_message(GATEWAY, EmittedTokens("r", Work(REQUEST, (9,)), 1), 8.1)
    assert to_workers(again, Prefill)


def test_another_gateway_gets_the_sequence_where_it_runs() -> None:
    core = cluster()
    target = decoding(core)
    join_gateway(core, "gateway-1", now=1.5)
    commands = ask(core, REQUEST, 1.5, emitted=(4, 5), resumed=True, gateway="gateway-1")
    assert to_workers(commands, AdoptSequence) == [(target, AdoptSequence("r", "gateway-1", 2))]
    ((gateway, taken),) = to_gateways(commands, RequestEnded)
    assert (gateway, taken.error) == (GATEWAY, "Cancelled")
    assert core.on_message(GATEWAY, StopRequest("r", 3, error="Cancelled"), 1.6) == []  # it is no longer its own
    ended = core.on_message(target, SequenceEnded("r", FinishReason.LENGTH, 20), 2.0)
    assert [gateway for gateway, _ in to_gateways(ended, RequestEnded)] == ["gateway-1"]
