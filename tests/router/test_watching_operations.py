"""Who watches an operation sees it now, whenever it has moved, and its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health

from baton.access.credentials import Credentials
from baton.config.schema import AccessSection, RouterSection
from baton.protocol.errors import NotFound
from baton.protocol.v1.admin_pb2 import WatchOperationRequest
from baton.protocol.v1.admin_pb2_grpc import AdminStub
from baton.protocol.worker import RankAddress
from baton.router.admin_calls import AdminCalls
from baton.router.admin_messages import operation_message, worker_message
from baton.router.admin_server import AdminService, start_admin_server
from baton.router.core.commands import Command, OperationUpdated
from baton.router.core.gateways import Gateways
from baton.router.core.operation import Drain, Operation, OperationState, Step, StepState
from baton.router.core.operations import Operations
from baton.router.core.orphans import Orphans
from baton.router.core.peer_frames import PeerFrames
from baton.router.driver import Driver
from baton.router.policy.cluster_state import ClusterState
from tests.router.policy.clusters import cluster_of, decode


@dataclass
class Kept:
    """A core with one operation, which moves it when it is cancelled or ticks."""

    operation: Operation = field(default_factory=lambda: Operation("op", Drain(("w",)), [Step("w", "drain")], 0.0))

    @property
    def operations(self) -> Any:
        return Operations(ClusterState(), {}, Orphans(30.0), _known={"op": self.operation})

    @property
    def gateways(self) -> Gateways:
        return Gateways(ClusterState(), RouterSection(), str, 0.0)

    def on_worker_lost(self, worker: str, now: float, certain: bool) -> list[Command]:
        self.operation.steps[0].state = StepState.DRAINING
        return [OperationUpdated(self.operation)]

    def cancel_operation(self, operation_id: str, now: float) -> tuple[Operation, list[Command]]:
        self.operation.state = OperationState.CANCELLED
        return self.operation, [OperationUpdated(self.operation)]


def _driver() -> Driver:
    core: Any = Kept()
    link: Any = None
    return Driver(core, link, PeerFrames("m", 1), clock=lambda: 1.0)


async def _states(driver: Driver, began: asyncio.Event | None = None) -> list[tuple[str, str]]:
    seen = []
    async for operation in driver.watch("op"):
        seen.append((operation.state.value, operation.steps[0].state.value))
        if began is not None:
            began.set()
    return seen


def test_two_watchers_see_every_move_and_the_end() -> None:
    async def watch() -> None:
        driver = _driver()
        began = asyncio.Event(), asyncio.Event()
        watchers = [asyncio.create_task(_states(driver, one)) for one in began]
        for one in began:
            await one.wait()
        driver.lose("w")
        await asyncio.sleep(0)  # both read
        await asyncio.sleep(0)
        driver.cancel_operation("op")
        expected = [("running", "waiting"), ("running", "draining"), ("cancelled", "draining")]
        assert await asyncio.gather(*watchers) == [expected, expected]
        assert driver._watchers == {}

    asyncio.run(watch())


def test_a_slow_watcher_sees_the_latest_and_never_misses_the_end() -> None:
    async def watch() -> None:
        driver = _driver()
        states = driver.watch("op")
        first = await anext(states)
        assert not first.state.ended
        driver.lose("w")
        driver.cancel_operation("op")
        assert (await anext(states)).state is OperationState.CANCELLED
        assert [one async for one in states] == []

    asyncio.run(watch())


def test_a_watcher_that_leaves_is_forgotten() -> None:
    async def watch() -> None:
        driver = _driver()
        states = driver.watch("op")
        await anext(states)
        await states.aclose()
        assert driver._watchers == {}
        with pytest.raises(NotFound, match="'other'"):
            await anext(driver.watch("other"))
        assert driver._watchers == {}

    asyncio.run(watch())


def test_an_operation_that_has_ended_is_shown_once() -> None:
    async def watch() -> None:
        driver = _driver()
        driver.cancel_operation("op")
        assert await _states(driver) == [("cancelled", "waiting")]

    asyncio.run(watch())


def test_the_clocks_of_an_operation_stop_with_it() -> None:
    operation = Operation("op", Drain(("w",)), [Step("w", "drain", started_s=2.0, ended_s=3.0)], 1.0, ended_s=4.0)
    message = operation_message(operation, 100.0)
    assert (message.title, message.elapsed_s, message.steps[0].elapsed_s) == ("drain w", 3.0, 1.0)


def test_a_drained_worker_is_draining_while_it_holds_something() -> None:
    state = cluster_of("decode-0")
    view = state.workers["decode-0"]
    assert worker_message(view, 0.0).state == "serving"
    view.serving = False
    assert worker_message(view, 0.0).state == "drained"
    decode(state, "decode-0", 1)
    message = worker_message(view, 0.0)
    assert message.state == "draining"
    assert message.predicted_tpot_s > 0
    assert 0 < message.predicted_peak_pages < 1000


def test_a_worker_is_shown_with_the_process_of_each_rank() -> None:
    view = cluster_of("decode-0").workers["decode-0"]
    assert worker_message(view, 0.0).rank_pids == [view.info.pid]
    ranks = (RankAddress(pid=4711), RankAddress(pid=4712))
    view.info = replace(view.info, pid=4711, endpoint=replace(view.info.endpoint, ranks=ranks))
    assert worker_message(view, 0.0).rank_pids == [4711, 4712]


def test_a_client_that_hangs_up_is_forgotten() -> None:
    async def watch() -> None:
        driver = _driver()
        admin, access = AdminService(AdminCalls(driver, "m", {})), Credentials(AccessSection())
        server, port = await start_admin_server(admin, "127.0.0.1:0", access, health.aio.HealthServicer())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = AdminStub(channel).WatchOperation(WatchOperationRequest(operation_id="op"))
            assert (await call.read()).state == "running"
            assert list(driver._watchers) == ["op"]
            call.cancel()
            while driver._watchers:
                await asyncio.sleep(0.01)
        await server.stop(0.0)

    asyncio.run(asyncio.wait_for(watch(), 20))
