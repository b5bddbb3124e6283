"""The router's ledger: what it believes of pages and sequences beside what the workers report."""

from __future__ import annotations

import random
from typing import NoReturn

from baton.config.schema import RouterSection
from baton.protocol.messages import FirstToken, RequestFailed, ReservationRefused, Reserve
from baton.protocol.session_messages import LoadReport
from baton.protocol.worker import RoleName, WorkerLoad
from baton.router.core.commands import Command
from baton.router.core.core import RouterCore
from baton.router.core.live_request import LiveRequest
from baton.router.policy.predicted_latency import PredictedLatency
from baton.simulator.stepped_cluster import SteppedCluster
from tests.router.hand_driven import join, join_gateway, leave, prompt_of, to_workers


def make_core(*roles: RoleName, num_pages: int = 100, max_batch: int = 64) -> RouterCore:
    core = RouterCore("router", PredictedLatency(), RouterSection(lost_after_s=float("inf")))
    for number, role in enumerate(roles):
        join(core, f"{role.value}{number}", role, num_pages=num_pages, max_batch=max_batch)
    return core


def reserves(commands: list[Command]) -> list[tuple[str, str]]:
    return [(worker, reserve.reservation_id) for worker, reserve in to_workers(commands, Reserve)]


def test_pages_of_a_running_sequence_count_once() -> None:
    cluster = SteppedCluster(random.Random(1), num_pages=64)
    cluster.add("prefill", RoleName.PREFILL)
    cluster.add("decode", RoleName.DECODE)
    cluster.settle()
    cluster.submit("a", [1] * 80, 100)
    while len(cluster.shown["a"]) < 8:
        cluster.step()
    cluster.report(cluster.workers["decode"])
    view = cluster.core.state.workers["decode"]
    assert view.load.pages_available < 64
    assert view.pages_available == view.load.pages_available


def test_a_worker_that_refused_does_not_expect_the_sequence() -> None:
    core = make_core(RoleName.PREFILL, RoleName.DECODE, max_batch=1)
    assert reserves(prompt_of(core, "a", 300)) == [("decode1", "a/1")]
    core.on_message("decode1", ReservationRefused("a/1", "a", "no room"), 0.01)
    assert not core.state.workers["decode1"].running
    commands = core.on_message("decode1", LoadReport(WorkerLoad("decode1", RoleName.DECODE, 0, 1, 100, 100, 0)), 0.1)
    assert reserves(commands) == [("decode1", "a/2")]


def test_refusals_do_not_go_round_in_circles() -> None:
    """Two full decode workers are asked once each per report, not in turns as fast as they can answer."""
    core = make_core(RoleName.PREFILL, RoleName.DECODE, RoleName.DECODE)
    for name in ("decode1", "decode2"):
        core.on_message(name, LoadReport(WorkerLoad(name, RoleName.DECODE, 0, 1, 100, 12, 0)), 0.0)
    asked, commands = 0, prompt_of(core, "a", 100)
    while found := reserves(commands):
        ((worker, reservation_id),) = found
        asked += 1
        assert asked <= 2
        commands = core.on_message(worker, ReservationRefused(reservation_id, "a", "headroom"), 0.001 * asked)
    assert asked == 2


class Unread(dict[str, LiveRequest]):
    """A table of requests that must not be gone through."""

    def values(self) -> NoReturn:
        raise AssertionError("every live request was looked at")


def test_an_arrival_costs_the_same_however_many_requests_live() -> None:
    core = make_core(RoleName.PREFILL, RoleName.DECODE)
    join_gateway(core)
    records, core.requests.live = core.requests.live, Unread()
    for number in range(5):
        prompt_of(core, f"r{number}", 20)
    assert len(core.requests.live) == 5
    records.update(core.requests.live)
    core.requests.live = records
    for number in range(5):
        leave(core, f"r{number}", 1.0)
    core.on_worker_lost("prefill0", 2.0)
    core.on_worker_lost("decode1", 2.0)
    assert not core.live
    assert not core.dispatch._live


def test_a_cancelled_prompt_ends_a_workers_work_when_it_is_cancelled() -> None:
    core = make_core(RoleName.PREFILL, RoleName.DECODE)
    prompt_of(core, "a", 1500)
    view = core.state.workers["prefill0"]
    busy_s = view.backlog_ends_s
    assert busy_s > 0.0
    at_s = 0.5 * busy_s
    leave(core, "a", at_s)
    core.on_message("prefill0", RequestFailed("a", "Cancelled", "gone"), at_s)
    assert not view.assigned
    assert view.backlog_ends_s == at_s


def _report(core: RouterCore, steps: int, number: int, epoch: int = 0) -> None:
    load = WorkerLoad("mixed0", RoleName.MIXED, epoch, number, 100, 90, 0, decode_steps=steps)
    core.on_message("mixed0", LoadReport(load), 0.1 * number)


def test_a_sequence_grows_by_the_decode_steps_of_its_worker_once_it_decodes() -> None:
    core = make_core(RoleName.MIXED)
    _report(core, 100, 1)
    prompt_of(core, "a", 32, max_tokens=50)
    _report(core, 105, 2)
    live, view = core.requests.live["a"], core.state.workers["mixed0"]
    assert (live.output_tokens, view.context_tokens) == (0, 32)
    core.on_message("mixed0", FirstToken("a"), 0.25)
    assert (live.output_tokens, live.num_tokens) == (1, 33)
    _report(core, 115, 3)
    assert (live.output_tokens, view.context_tokens) == (11, 43)
    _report(core, 200, 4)
    assert live.output_tokens == 50  # its limit


def test_steps_in_a_new_role_are_counted_from_nothing() -> None:
    core = make_core(RoleName.MIXED)
    _report(core, 100, 1)
    prompt_of(core, "a", 32, max_tokens=50)
    core.on_message("mixed0", FirstToken("a"), 0.15)
    _report(core, 3, 2, epoch=1)
    assert core.requests.live["a"].output_tokens == 1
    _report(core, 5, 3, epoch=1)
    assert core.requests.live["a"].output_tokens == 3
