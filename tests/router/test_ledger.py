"""The router's ledger: what it believes of pages and sequences beside what the workers report."""

from __future__ import annotations

import random
from typing import NoReturn

from baton.config.schema import RouterSection
from baton.protocol.errors import Cancelled
from baton.protocol.messages import LoadReport, Register, RequestFailed, ReservationRefused, Reserve
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo, WorkerLoad
from baton.router.core.commands import Command, SendToWorker
from baton.router.core.core import RouterCore
from baton.router.core.live_request import LiveRequest
from baton.router.policy.predicted_latency import PredictedLatency
from baton.simulator.stepped_cluster import SteppedCluster


def make_core(*roles: RoleName, num_pages: int = 100, max_batch: int = 64) -> RouterCore:
    core = RouterCore("router", PredictedLatency(), None, RouterSection(lost_after_s=float("inf")))
    for number, role in enumerate(roles):
        layout = PageLayout(num_pages, 1, 16, 1, 1, "float32", "model")
        name = f"{role.value}{number}"
        info = WorkerInfo(name, "1", role, 0, Endpoint(name, b"", 0, 0, layout), 1024, max_batch)
        core.on_message(name, Register(info), 0.0)
    return core


def submit(core: RouterCore, request_id: str, tokens: int) -> list[Command]:
    return core.submit(Request(request_id, tuple(range(tokens)), SamplingParams(max_tokens=10), 0.0), 0.0)


def reserves(commands: list[Command]) -> list[tuple[str, str]]:
    return [
        (command.worker, command.message.reservation_id)
        for command in commands
        if isinstance(command, SendToWorker) and isinstance(command.message, Reserve)
    ]


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
    assert reserves(submit(core, "a", 300)) == [("decode1", "a/1")]
    core.on_message("decode1", ReservationRefused("a/1", "a", "no room"), 0.01)
    assert not core.state.workers["decode1"].running
    commands = core.on_message("decode1", LoadReport(WorkerLoad("decode1", RoleName.DECODE, 0, 1, 100, 100, 0)), 0.1)
    assert reserves(commands) == [("decode1", "a/2")]


def test_refusals_do_not_go_round_in_circles() -> None:
    """Two full decode workers are asked once each per report, not in turns as fast as they can answer."""
    core = make_core(RoleName.PREFILL, RoleName.DECODE, RoleName.DECODE)
    for name in ("decode1", "decode2"):
        core.on_message(name, LoadReport(WorkerLoad(name, RoleName.DECODE, 0, 1, 100, 12, 0)), 0.0)
    asked, commands = 0, submit(core, "a", 100)
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
    records, core.requests.live = core.requests.live, Unread()
    for number in range(5):
        submit(core, f"r{number}", 20)
    assert len(core.requests.live) == 5
    records.update(core.requests.live)
    core.requests.live = records
    for number in range(5):
        core.stop(f"r{number}", Cancelled("gone"), 1.0)
    core.on_worker_lost("prefill0", 2.0)
    core.on_worker_lost("decode1", 2.0)
    assert not core.live
    assert not core.dispatch._live


def test_a_cancelled_prompt_ends_a_workers_work_when_it_is_cancelled() -> None:
    core = make_core(RoleName.PREFILL, RoleName.DECODE)
    submit(core, "a", 1500)
    view = core.state.workers["prefill0"]
    busy_s = view.backlog_ends_s
    assert busy_s > 0.0
    at_s = 0.5 * busy_s
    core.stop("a", Cancelled("gone"), at_s)
    core.on_message("prefill0", RequestFailed("a", "Cancelled", "gone"), at_s)
    assert not view.assigned
    assert view.backlog_ends_s == at_s
