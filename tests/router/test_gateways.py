"""Gateways that join, are lost and come back, and what becomes of their requests."""

from __future__ import annotations

from dataclasses import replace

from baton.config.schema import AccessSection, RouterSection
from baton.protocol.gateway_messages import (
    AskEmitted,
    EmittedTokens,
    GatewayLoad,
    GatewayRegistered,
    RequestEnded,
    ServingPools,
    WorkerJoined,
    WorkerLeft,
)
from baton.protocol.messages import AdoptSequence, Cancel, FirstToken, Prefill, SequenceEnded
from baton.protocol.request import FinishReason, Request, SamplingParams
from baton.protocol.session_messages import GatewayJoined, GatewayLeft, GatewayUnreachable, Reregister, RoleChanged
from baton.protocol.worker import RoleName
from baton.router.core.commands import Command, Kill, SendToGateway
from baton.router.core.core import RouterCore
from baton.router.core.live_request import Phase
from baton.router.core.operation import Drain, Undrain
from baton.router.policy.policies import make_policy
from tests.router.hand_driven import (
    GATEWAY,
    ask,
    end_of,
    join,
    join_gateway,
    prompt_of,
    submission,
    to_gateways,
    to_workers,
)

REQUEST = Request("r", tuple(range(40)), SamplingParams(max_tokens=20))
LOAD = GatewayLoad(1, 0, 1, 0.0)


def cluster(claim_within_s: float = 30.0, tenant_streams: int = 0) -> RouterCore:
    """Two workers that run whole requests; they are never lost."""
    config = RouterSection(claim_within_s=claim_within_s, lost_after_s=1000.0)
    core = RouterCore(
        "router", make_policy("least_loaded"), config, access=AccessSection(max_streams_per_tenant=tenant_streams)
    )
    core.requests.strict = True
    for name in ("mixed-0", "mixed-1"):
        join(core, name, RoleName.MIXED)
    return core


def running(core: RouterCore) -> str:
    """The request decodes; returns its worker."""
    ((worker, _),) = to_workers(ask(core, REQUEST, 1.0), Prefill)
    core.on_message(worker, FirstToken("r"), 1.1)
    assert core.requests.live["r"].phase is Phase.DECODING
    return worker


def unreachable(core: RouterCore, worker: str, now: float) -> list[Command]:
    """The worker cannot reach the gateway, which lives."""
    core.on_message(worker, GatewayUnreachable(GATEWAY, "1"), now)
    core.on_message(GATEWAY, LOAD, now + 0.1)
    return core.tick(now + 0.2)


def test_gateways_and_workers_are_introduced_to_each_other_with_their_keys() -> None:
    core = RouterCore("router", make_policy("least_loaded"), public_key=lambda name: f"key of {name}")
    join(core, "mixed-0", RoleName.MIXED)
    commands = join_gateway(core)
    joined = GatewayJoined(GATEWAY, "1", f"tcp://{GATEWAY}", f"key of {GATEWAY}")
    assert commands[0] == SendToGateway(GATEWAY, GatewayRegistered("router", "1"))
    assert to_gateways(commands, WorkerJoined) == [(GATEWAY, WorkerJoined("mixed-0", "key of mixed-0"))]
    assert to_workers(commands, GatewayJoined) == [("mixed-0", joined)]
    commands = join(core, "mixed-1", RoleName.MIXED)
    assert to_gateways(commands, WorkerJoined) == [(GATEWAY, WorkerJoined("mixed-1", "key of mixed-1"))]
    assert to_workers(commands, GatewayJoined) == [("mixed-1", joined)]
    assert to_gateways(core.on_worker_lost("mixed-1", 1.0), WorkerLeft) == [(GATEWAY, WorkerLeft("mixed-1"))]
    assert to_workers(core.on_gateway_lost(GATEWAY, 2.0), GatewayLeft) == [("mixed-0", GatewayLeft(GATEWAY, "1"))]


def test_gateways_are_sent_which_pools_have_a_worker_that_serves() -> None:
    core = RouterCore("router", make_policy("least_loaded"), started_s=0.0)
    core.requests.strict = True

    def sent(commands: list[Command]) -> list[ServingPools]:
        return [pools for _, pools in to_gateways(commands, ServingPools)]

    assert sent(join_gateway(core)) == []  # Workers may still come back to a router that has restarted
    assert sent(join(core, "prefill-0", RoleName.PREFILL, 1.0)) == []
    assert sent(join(core, "decode-0", RoleName.DECODE, 1.0)) == [ServingPools(True, True)]
    assert sent(join(core, "decode-1", RoleName.DECODE, 1.0)) == []
    assert sent(join_gateway(core, "gateway-1", now=1.0)) == [ServingPools(True, True)]
    core.start_operation("o", Drain(("decode-0",)), False, 2.0)
    assert sent(core.on_worker_lost("decode-1", 2.0)) == [ServingPools(True, False)] * 2
    assert sent(core.start_operation("p", Undrain(("decode-0",)), False, 2.0)[1]) == [ServingPools(True, True)] * 2
    assert sent(core.on_message("decode-0", RoleChanged(RoleName.PREFILL, 1), 3.0)) == [ServingPools(True, False)] * 2
    assert sent(core.on_message("decode-0", RoleChanged(RoleName.MIXED, 2), 3.0)) == [ServingPools(True, True)] * 2
    assert sent(core.on_worker_lost("prefill-0", 4.0)) == []


def test_a_router_without_workers_says_so_once_they_had_time_to_come_back() -> None:
    core = RouterCore(
        "router", make_policy("least_loaded"), RouterSection(no_workers_grace_s=5.0, lost_after_s=60.0), started_s=0.0
    )
    join_gateway(core)
    assert to_gateways(core.tick(4.9), ServingPools) == []
    assert to_gateways(core.tick(5.0), ServingPools) == [(GATEWAY, ServingPools(False, False))]


def test_an_unknown_gateway_is_asked_to_register_once_in_a_while() -> None:
    core = cluster()
    asked = [SendToGateway(GATEWAY, Reregister("1", "router"))]
    assert core.on_frame(GATEWAY, "1", [submission(REQUEST)], 0.0) == asked
    assert core.on_frame(GATEWAY, "1", [LOAD], 0.5) == []
    assert core.on_frame(GATEWAY, "1", [LOAD], 1.5) == asked
    assert core.live == 0


def test_a_gateway_that_registers_again_is_introduced_to_no_worker_twice() -> None:
    core = cluster()
    join_gateway(core)
    commands = join_gateway(core)
    assert to_gateways(commands, GatewayRegistered)
    assert not to_workers(commands, GatewayJoined)
    restarted = join_gateway(core, incarnation="2")
    assert len(to_workers(restarted, GatewayLeft)) == len(to_workers(restarted, GatewayJoined)) == 2


def test_requests_of_a_lost_gateway_run_on_until_one_claims_them_or_their_time_is_over() -> None:
    core = cluster()
    worker = running(core)
    core.on_gateway_lost(GATEWAY, 2.0)
    assert core.tick(31.9) == []
    commands = core.tick(32.0)
    assert to_workers(commands, Cancel) == [(worker, Cancel("r"))]
    assert not to_gateways(commands, RequestEnded)
    assert core.live == 0


def test_where_nothing_may_be_claimed_they_end_at_once() -> None:
    core = cluster(claim_within_s=0.0)
    worker = running(core)
    assert to_workers(core.on_gateway_lost(GATEWAY, 2.0), Cancel) == [(worker, Cancel("r"))]


def test_a_restarted_gateway_claims_its_requests_and_receives_nothing_meant_for_its_former_process() -> None:
    core = cluster(claim_within_s=1.0)
    worker = running(core)
    join_gateway(core, incarnation="2", now=2.0)
    commands = ask(core, REQUEST, 2.5, emitted=(1, 2), resumed=True)
    assert to_workers(commands, AdoptSequence) == [(worker, AdoptSequence("r", GATEWAY, 2))]
    assert core.tick(10.0) == []
    ended = core.on_message(worker, SequenceEnded("r", FinishReason.STOP, 4), 10.0)
    assert end_of(ended).num_tokens == 4
    running(core)
    join_gateway(core, incarnation="3", now=20.0)
    assert not to_gateways(core.tick(22.0), RequestEnded)
    assert core.live == 0


def test_what_a_gateway_no_longer_lists_is_stopped() -> None:
    core = cluster()
    running(core)
    prompt_of(core, "other", 20)
    commands = join_gateway(core, now=2.0, request_ids=("other", "new"))
    assert {message.request_id for _, message in to_workers(commands, Cancel)} == {"r"}
    assert list(core.requests.live) == ["other"]


def test_a_silent_gateway_is_lost_and_one_that_reports_is_not() -> None:
    core = RouterCore("router", make_policy("least_loaded"), RouterSection(lost_after_s=2.0))
    join_gateway(core)
    for tenths in range(39):
        core.tick(0.1 * tenths)
    assert GATEWAY in core.gateways
    core.on_frame(GATEWAY, "1", [LOAD], 3.9)
    for tenths in range(39, 80):
        core.tick(0.1 * tenths)
    assert GATEWAY not in core.gateways


def test_a_gateway_that_stays_silent_is_killed_and_one_that_returns_or_has_ended_is_not() -> None:
    core = RouterCore("router", make_policy("least_loaded"), RouterSection(lost_after_s=2.0))

    def killed(begin_s: float, end_s: float) -> list[tuple[float, str]]:
        ticks = [0.5 * number for number in range(int(2 * begin_s), int(2 * end_s))]
        return [(at, command.peer) for at in ticks for command in core.tick(at) if isinstance(command, Kill)]

    join_gateway(core)
    assert killed(0.0, 30.0) == [(15.0, GATEWAY), (25.5, GATEWAY)], "lost after 4 s, then every 10 s"
    join_gateway(core, now=30.0)
    core.on_gateway_lost(GATEWAY, 30.0, certain=False)
    join_gateway(core, now=39.0)
    core.on_gateway_lost(GATEWAY, 39.5)
    assert killed(39.5, 90.0) == [], "its process has ended"
    join_gateway(core, now=90.0)
    core.on_gateway_lost(GATEWAY, 90.0, certain=False)
    assert core.gateways.has_process(GATEWAY)
    core.on_gateway_lost(GATEWAY, 91.0)
    assert not core.gateways.has_process(GATEWAY)
    assert killed(91.0, 130.0) == []


def test_a_request_whose_worker_cannot_reach_its_gateway_goes_to_one_that_can() -> None:
    core = cluster()
    worker = running(core)
    commands = unreachable(core, worker, 5.0)
    assert to_workers(commands, Cancel) == [(worker, Cancel("r"))]
    assert to_gateways(commands, AskEmitted) == [(GATEWAY, AskEmitted("r"))]
    answer = EmittedTokens("r", submission(REQUEST, emitted=(1,)).work, 1)
    ((other, _),) = to_workers(core.on_message(GATEWAY, answer, 5.3), Prefill)
    assert other != worker
    for number in range(6):
        placed = to_workers(prompt_of(core, f"new{number}", 10, now=6.0), Prefill)
        assert [name for name, _ in placed] == [other]
    core.on_message(worker, GatewayUnreachable(GATEWAY, "1", reachable=True), 7.0)
    assert [name for name, _ in to_workers(prompt_of(core, "again", 10, now=7.0), Prefill)] == [worker]


def test_sequences_stay_while_no_worker_reaches_their_gateway_or_it_is_silent() -> None:
    core = cluster()
    worker = running(core)
    core.on_message(worker, GatewayUnreachable(GATEWAY, "1"), 5.0)
    assert not to_workers(core.tick(5.2), Cancel)  # it is more likely dead
    other = ({"mixed-0", "mixed-1"} - {worker}).pop()
    core.on_message(other, GatewayUnreachable(GATEWAY, "1"), 5.2)
    core.on_message(GATEWAY, LOAD, 5.3)
    assert not to_workers(core.tick(5.4), Cancel)


def test_of_two_different_requests_of_one_id_the_later_one_is_refused() -> None:
    core = cluster()
    running(core)
    another = Request("r", (1, 2, 3), SamplingParams(max_tokens=20))
    ended = end_of(ask(core, another, 2.0))
    assert (ended.error, "in use" in ended.message) == ("InvalidRequest", True)
    assert core.live == 1


def test_a_tenant_has_so_many_streams_at_once_and_no_more() -> None:
    core = cluster(tenant_streams=2)
    for name in ("a", "b"):
        prompt_of(core, name, 10)
    refused = end_of(prompt_of(core, "c", 10))
    assert (refused.error, refused.retry_after_s) == ("Overloaded", 1.0)
    other = Request("d", (1, 2), SamplingParams(), tenant="another")
    assert not to_gateways(ask(core, other), RequestEnded)
    core.on_message("mixed-0", SequenceEnded("a", FinishReason.STOP, 3), 1.0)
    core.on_message("mixed-1", SequenceEnded("a", FinishReason.STOP, 3), 1.0)
    assert not to_gateways(prompt_of(core, "e", 10), RequestEnded)


def test_of_two_clients_of_a_request_the_one_that_called_later_has_it_whatever_order_their_gateways_submit_in() -> None:
    """A submission may wait in a link while the router is away, so its age does not tell when the client called."""
    later = replace(REQUEST, arrival_s=1.5)
    for first, second in ((REQUEST, later), (later, REQUEST)):
        core = cluster()
        join_gateway(core, "gateway-1")
        by_request = {id(REQUEST): GATEWAY, id(later): "gateway-1"}
        ask(core, first, 3.0, gateway=by_request[id(first)])
        commands = ask(core, second, 3.0, gateway=by_request[id(second)])
        ((taken_from, end),) = to_gateways(commands, RequestEnded)
        assert (taken_from, end.error) == (GATEWAY, "Cancelled")
        assert core.requests.live["r"].gateway == "gateway-1"
