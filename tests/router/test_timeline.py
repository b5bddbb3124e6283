"""The recorded phases of a sampled request: what its trace shows of the router."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from baton.protocol.gateway_messages import EmittedTokens
from baton.protocol.handoff import HandoffOutcome, HandoffReport, Reservation
from baton.protocol.messages import (
    FirstToken,
    HandoffCommitted,
    HandoffEnded,
    ReservationRefused,
    Reserve,
    Reserved,
    SequenceEnded,
    Work,
)
from baton.protocol.request import FinishReason, Request, SamplingParams
from baton.protocol.trace_context import TraceContext
from baton.router.core.commands import Command, RequestCompleted
from baton.router.core.core import RouterCore
from baton.router.core.timeline import MAX_PHASES, RecordedPhase, Timeline
from tests.router.hand_driven import GATEWAY, join_gateway, leave, submission, to_workers
from tests.router.test_plain_request import cluster

REQUEST = Request("r", tuple(range(40)), SamplingParams(max_tokens=20))
TRACE = TraceContext(bytes(15) + b"t", bytes(7) + b"s")
REPORT = HandoffReport(pages_sent=3, bytes_sent=4096, exposed_s=0.01)


def _submit(core: RouterCore, now: float, trace: TraceContext | None = TRACE) -> list[Command]:
    join_gateway(core, now=now)
    return core.on_message(GATEWAY, replace(submission(REQUEST, now=now), trace=trace, age_s=0.0), now)


def _hand_over(core: RouterCore, commands: Iterable[Command], now: float) -> str:
    """From the order to reserve to the commit, 0.4 s later; returns the decode worker."""
    ((target, reserve),) = to_workers(commands, Reserve)
    reservation = Reservation(reserve.reservation_id, "r", f"{target}:1", (1, 2, 3), (0, 0, 0), 0, 40)
    core.on_message(target, Reserved(reservation), now + 0.1)
    core.on_message("prefill-0", FirstToken("r", (0.1, 0.0)), now + 0.2)
    ended = HandoffEnded("r", reserve.reservation_id, HandoffOutcome.DELIVERED, REPORT)
    core.on_message("prefill-0", ended, now + 0.3)
    core.on_message(target, HandoffCommitted("r", reserve.reservation_id), now + 0.4)
    return target


def _phases(commands: Iterable[Command]) -> list[RecordedPhase]:
    """Those of the only request that has ended."""
    (completion,) = [one.completion for one in commands if isinstance(one, RequestCompleted)]
    assert completion.timeline is not None and completion.timeline.trace == TRACE
    return completion.timeline.phases


def _times(phases: list[RecordedPhase]) -> list[tuple[str, float, float]]:
    return [(phase.name, round(phase.start_s, 3), round(phase.end_s, 3)) for phase in phases]


def test_a_plain_request_has_a_phase_after_the_other_and_its_handoff_beside_its_prefill() -> None:
    core = cluster()
    target = _hand_over(core, _submit(core, 1.0), 1.0)
    phases = _phases(core.on_message(target, SequenceEnded("r", FinishReason.STOP, 7), 2.0))
    assert _times(phases) == [
        ("queue", 1.0, 1.0),
        ("prefill", 1.0, 1.2),
        ("handoff", 1.0, 1.4),
        ("decode", 1.4, 2.0),
    ]
    queue, prefill, handoff, decode = phases
    assert queue.attributes["baton.policy"] == "least_loaded"
    assert (queue.attributes["baton.prefill_worker"], queue.attributes["baton.local"]) == ("prefill-0", False)
    assert prefill.attributes == {"baton.worker": "prefill-0", "baton.attempt": 1, "baton.tokens": 40}
    assert [(name, round(at_s, 3)) for name, at_s in prefill.events] == [
        ("chunk computed", 1.1),
        ("chunk computed", 1.2),
    ]
    assert (handoff.attributes["baton.source"], handoff.attributes["baton.target"]) == ("prefill-0", target)
    assert handoff.attributes["baton.handoff.bytes"] == 4096
    assert [name for name, _ in handoff.events] == ["reserved", "committed"]
    assert (decode.attributes["baton.worker"], decode.attributes["baton.output_tokens"]) == (target, 7)
    assert not any(phase.error for phase in phases)


def test_a_lost_worker_ends_the_decode_with_its_reason_and_a_retry_follows() -> None:
    core = cluster()
    target = _hand_over(core, _submit(core, 1.0), 1.0)
    core.on_worker_lost(target, 2.0)
    again = core.on_message(GATEWAY, EmittedTokens("r", Work(REQUEST, (9, 8, 7)), 3), 2.5)
    other = _hand_over(core, again, 2.5)
    phases = _phases(core.on_message(other, SequenceEnded("r", FinishReason.STOP, 7), 4.0))
    assert _times(phases[3:]) == [
        ("decode", 1.4, 2.0),
        ("retry", 2.0, 2.5),
        ("prefill", 2.5, 2.7),
        ("handoff", 2.5, 2.9),
        ("decode", 2.9, 4.0),
    ]
    assert phases[3].error == f"{target} died"
    retry, prefill = phases[4:6]
    assert (retry.attributes["baton.retry.reason"], retry.attributes["baton.attempt"]) == (f"{target} died", 2)
    assert (prefill.attributes["baton.attempt"], prefill.attributes["baton.tokens"]) == (2, 43)


def test_a_refused_reservation_is_a_failed_handoff_and_the_wait_for_another_one_is_shown() -> None:
    core = cluster()
    core.on_worker_lost("decode-1", 0.5)
    ((target, reserve),) = to_workers(_submit(core, 1.0), Reserve)
    core.on_message(target, ReservationRefused(reserve.reservation_id, "r", "full"), 1.1)
    core.on_message("prefill-0", FirstToken("r"), 1.5)
    phases = _phases(leave(core, "r", 2.0))
    assert _times(phases) == [
        ("queue", 1.0, 1.0),
        ("prefill", 1.0, 1.5),
        ("handoff", 1.0, 1.1),
        ("wait for decode", 1.5, 2.0),
    ]
    assert phases[2].error == f"{target} has too few free pages"


def test_an_unsampled_request_records_nothing() -> None:
    core = cluster()
    target = _hand_over(core, _submit(core, 1.0, trace=None), 1.0)
    commands = core.on_message(target, SequenceEnded("r", FinishReason.STOP, 7), 2.0)
    (completion,) = [one.completion for one in commands if isinstance(one, RequestCompleted)]
    assert completion.timeline is None


def test_a_claim_by_another_gateway_moves_what_follows_to_that_gateways_span() -> None:
    core = cluster()
    target = _hand_over(core, _submit(core, 1.0), 1.0)
    core.on_gateway_lost(GATEWAY, 1.5)
    join_gateway(core, "gateway-1", now=1.6)
    other = TraceContext(TRACE.trace_id, bytes(7) + b"u")
    core.on_message("gateway-1", replace(submission(REQUEST, now=1.7, resumed=True), trace=other, age_s=0.1), 1.7)
    commands = core.on_message(target, SequenceEnded("r", FinishReason.STOP, 7), 2.0)
    (completion,) = [one.completion for one in commands if isinstance(one, RequestCompleted)]
    assert completion.timeline is not None and completion.timeline.trace == other
    assert _times(completion.timeline.phases) == [("decode", 1.7, 2.0)]


def test_the_number_of_phases_is_bounded() -> None:
    timeline = Timeline(TRACE)
    for number in range(2 * MAX_PHASES):
        timeline.begin(f"retry {number}", RecordedPhase("retry", number, number))
    assert len(timeline.phases) == MAX_PHASES
