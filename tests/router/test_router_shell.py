"""The router's shell over its real link: peers with keys of their own, introductions, status and restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health

from baton.access.credentials import Credentials
from baton.config.schema import AccessSection, RouterSection
from baton.links.frame_client import FrameClient
from baton.links.frame_server import FrameServer
from baton.links.keys import new_secret, peer_keys, public_key
from baton.protocol.codec import FROM_ROUTER_TO_GATEWAY, FROM_ROUTER_TO_WORKER, TO_ROUTER
from baton.protocol.errors import Cancelled
from baton.protocol.gateway_messages import (
    GatewayInfo,
    GatewayLoad,
    GatewayRegistered,
    RegisterGateway,
    StopRequest,
    WorkerJoined,
    WorkerLeft,
)
from baton.protocol.link_keys import ROUTER
from baton.protocol.messages import FirstToken, Prefill, SequenceEnded
from baton.protocol.request import FinishReason, Request, SamplingParams
from baton.protocol.session_messages import Alive, GatewayJoined, Register, RegisterAck, Reregister
from baton.protocol.v1 import admin_pb2
from baton.protocol.v1.admin_pb2_grpc import AdminStub
from baton.router.admin_calls import AdminCalls
from baton.router.admin_server import AdminService, start_admin_server
from baton.router.core.completion import Completion
from baton.router.core.core import RouterCore
from baton.router.core.peer_frames import PeerFrames
from baton.router.driver import Driver
from baton.router.policy.policies import make_policy
from tests.router.hand_driven import submission
from tests.router.policy.clusters import worker_info
from tests.waiting import until_async

GATEWAY = GatewayInfo("gateway-0", "first", "tcp://127.0.0.1:5600", "127.0.0.1:50051", "a-host", 77)


@dataclass(eq=False)
class Peer:
    """A worker or a gateway as the router sees it, and what it has received."""

    link: FrameClient
    received: list[Any] = field(default_factory=list)

    async def until(self, kind: type, count: int = 1) -> list[Any]:
        """The messages of a kind, once there are so many."""

        def seen() -> bool:
            self.received += self.link.receive()[1]
            return sum(isinstance(message, kind) for message in self.received) >= count

        await until_async(seen)
        return [message for message in self.received if isinstance(message, kind)]


@asynccontextmanager
async def _router(secret: str, router_id: str, address: str = "tcp://127.0.0.1:*") -> AsyncIterator[Driver]:
    core = RouterCore(
        router_id=router_id,
        placement=make_policy("least_loaded", False),
        config=RouterSection(),
        public_key=lambda name: public_key(secret, name),
    )
    link = FrameServer(address, TO_ROUTER, core.public_key, peer_keys(secret, ROUTER))
    driver = Driver(core, link, PeerFrames("model", 1000))
    task = asyncio.create_task(driver.run())
    try:
        yield driver
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        link.close()


def _gateway(secret: str, address: str) -> Peer:
    keys = peer_keys(secret, GATEWAY.name)
    return Peer(FrameClient(address, GATEWAY.name, FROM_ROUTER_TO_GATEWAY, GATEWAY.incarnation, keys))


def _worker(secret: str, address: str, name: str = "decode-0") -> Peer:
    return Peer(FrameClient(address, name, FROM_ROUTER_TO_WORKER, "1", peer_keys(secret, name)))


def test_a_gateway_and_a_worker_get_each_others_address_and_key() -> None:
    async def run() -> None:
        secret = new_secret()
        registered: list[str] = []
        async with _router(secret, "router") as driver:
            driver.on_registered = registered.append
            gateway, worker = _gateway(secret, driver.link.address), _worker(secret, driver.link.address)
            gateway.link.send([RegisterGateway(GATEWAY)])
            assert await gateway.until(GatewayRegistered) == [GatewayRegistered("router", "first")]
            worker.link.send([Register(worker_info("decode-0"))])
            assert [one.incarnation for one in await worker.until(RegisterAck)] == ["1"]
            key = public_key(secret, "gateway-0")
            assert await worker.until(GatewayJoined) == [
                GatewayJoined("gateway-0", "first", GATEWAY.worker_address, key)
            ]
            assert await gateway.until(WorkerJoined) == [WorkerJoined("decode-0", public_key(secret, "decode-0"))]
            assert registered == ["gateway-0", "decode-0"]
            driver.lose("decode-0")
            assert await gateway.until(WorkerLeft) == [WorkerLeft("decode-0")]
            driver.lose("gateway-0")
            assert not driver.core.gateways.by_name
            for peer in (gateway, worker):
                peer.link.close()

    asyncio.run(run())


def test_a_worker_cannot_register_as_a_gateway_nor_a_gateway_send_what_workers_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        secret = new_secret()
        async with _router(secret, "router") as driver:
            gateway, worker = _gateway(secret, driver.link.address), _worker(secret, driver.link.address)
            gateway.link.send([RegisterGateway(GATEWAY)])
            worker.link.send([Register(worker_info("decode-0"))])
            await gateway.until(WorkerJoined)
            worker.link.send([RegisterGateway(GATEWAY)])
            await until_async(lambda: bool(caplog.messages))
            gateway.link.send([Alive(), Register(replace(worker_info("decode-0"), name="gateway-0"))])
            gateway.link.send([GatewayLoad(3, 0, 0, 0.0)])
            await until_async(lambda: driver.core.gateways.by_name["gateway-0"].load.streams == 3)
            assert list(driver.core.gateways.by_name) == ["gateway-0"]
            assert list(driver.core.state.workers) == ["decode-0"]
            for peer in (gateway, worker):
                peer.link.close()

    asyncio.run(run())
    assert any("a worker sends RegisterGateway" in line for line in caplog.messages)


def test_listeners_get_each_request_that_has_ended_once() -> None:
    async def run() -> None:
        secret, completed = new_secret(), list[Completion]()
        async with _router(secret, "router") as driver:
            driver.on_completed.append(completed.append)
            gateway, worker = _gateway(secret, driver.link.address), _worker(secret, driver.link.address, "mixed-0")
            worker.link.send([Register(worker_info("mixed-0"))])
            await worker.until(RegisterAck)
            requests = [Request(name, (5, 6, 7), SamplingParams(max_tokens=4)) for name in ("answered", "left")]
            gateway.link.send([RegisterGateway(GATEWAY), *(submission(request) for request in requests)])
            await worker.until(Prefill, 2)
            worker.link.send([FirstToken("answered"), SequenceEnded("answered", FinishReason.STOP, 3)])
            await until_async(lambda: len(completed) == 1)
            gateway.link.send([StopRequest("left", 0, error="Cancelled", message="gone")])
            await until_async(lambda: len(completed) == 2)
            for peer in (gateway, worker):
                peer.link.close()
        answered, left = completed
        assert (answered.request_id, answered.reason, answered.output_tokens) == ("answered", FinishReason.STOP, 3)
        assert (left.request_id, left.reason) == ("left", None) and isinstance(left.error, Cancelled)

    asyncio.run(run())


def test_the_status_shows_a_gateways_last_report_and_its_rates() -> None:
    async def run() -> admin_pb2.GatewayStatus:
        secret, now = new_secret(), [10.0]
        async with _router(secret, "router") as driver:
            driver.clock = lambda: now[0]
            gateway = _gateway(secret, driver.link.address)
            gateway.link.send([RegisterGateway(GATEWAY), GatewayLoad(5, 100, 10, 1.0)])
            await gateway.until(GatewayRegistered)
            now[0] = 12.0
            gateway.link.send([GatewayLoad(7, 900, 30, 1.5, 4096)])
            await until_async(lambda: driver.core.gateways.by_name["gateway-0"].load.streams == 7)
            now[0] = 12.5
            admin, access = AdminService(AdminCalls(driver, "m", {})), Credentials(AccessSection())
            server, port = await start_admin_server(admin, "127.0.0.1:0", access, health.aio.HealthServicer())
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                cluster = await AdminStub(channel).GetCluster(admin_pb2.GetClusterRequest())
            await server.stop(0.0)
            gateway.link.close()
        (status,) = cluster.gateways
        return status

    assert asyncio.run(run()) == admin_pb2.GatewayStatus(
        name="gateway-0",
        host="a-host",
        pid=77,
        incarnation="first",
        public_address="127.0.0.1:50051",
        streams=7,
        tokens_per_s=400.0,
        requests_per_s=10.0,
        cpu_share=0.25,
        waiting_bytes=4096,
        last_report_s=0.5,
    )


def test_a_restarted_router_accepts_the_same_peers() -> None:
    async def run() -> None:
        secret = new_secret()
        async with _router(secret, "first router") as driver:
            address = driver.link.address
            gateway, worker = _gateway(secret, address), _worker(secret, address)
            gateway.link.send([RegisterGateway(GATEWAY)])
            worker.link.send([Register(worker_info("decode-0"))])
            await gateway.until(WorkerJoined)
            await worker.until(GatewayJoined)
        async with _router(secret, "second router", address) as driver:
            gateway.link.send([GatewayLoad(1, 0, 0, 0.0)])
            (asked,) = await gateway.until(Reregister)
            assert asked == Reregister("first", "second router")
            gateway.link.send([RegisterGateway(GATEWAY)])
            worker.link.send([Register(worker_info("decode-0"))])
            await gateway.until(WorkerJoined, 2)
            await worker.until(GatewayJoined, 2)
            for peer in (gateway, worker):
                peer.link.close()

    asyncio.run(run())


def test_a_gateway_that_a_message_cannot_reach_must_register_again() -> None:
    async def run() -> None:
        secret = new_secret()
        async with _router(secret, "router") as driver:
            gateway = _gateway(secret, driver.link.address)
            gateway.link.send([RegisterGateway(GATEWAY)])
            await gateway.until(GatewayRegistered)
            gateway.link.close()
            worker = _worker(secret, driver.link.address)

            def registered_without_it() -> bool:
                """The router learns of the closed connection a moment later, and from the next message."""
                worker.link.send([Register(worker_info("decode-0"))])
                worker.link.receive()
                driver.lose("decode-0")
                return not driver.core.gateways.by_name

            await until_async(registered_without_it)
            again = _gateway(secret, driver.link.address)
            again.link.send([GatewayLoad(1, 0, 0, 0.0)])
            assert await again.until(Reregister) == [Reregister("first", "router")]
            for link in (again.link, worker.link):
                link.close()

    asyncio.run(run())
