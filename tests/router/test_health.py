"""Health checks of the router's port for operators: the router itself, and whether workers of all roles serve."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import httpx2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.builtin_model import CHECKPOINT
from baton.engine.checkpoint import model_id
from baton.links.frame_client import FrameClient
from baton.protocol.codec import FROM_ROUTER_TO_WORKER
from baton.protocol.session_messages import Register
from baton.router.admin_server import INFERENCE, SERVICE
from baton.router.build import RunningRouter, start_router
from tests.plans import router_config
from tests.router.policy.clusters import worker_info

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def _join(running: RunningRouter, name: str) -> FrameClient:
    """A worker that registers; its role is the first part of its name."""
    worker = FrameClient(running.worker_address, name, FROM_ROUTER_TO_WORKER, "1")
    worker.start(lambda changes, batch: None)
    info = worker_info(name)
    layout = replace(info.endpoint.layout, model_id=model_id(CHECKPOINT))
    worker.send([Register(replace(info, endpoint=replace(info.endpoint, layout=layout)))])
    return worker


def test_health_checks_follow_the_pools_and_fail_when_the_router_stops() -> None:
    async def scene() -> None:
        running = await start_router(router_config(CHECKPOINT))
        base_url = f"http://{running.addresses.admin_http}"
        async with (
            grpc.aio.insecure_channel(running.addresses.admin) as channel,
            httpx2.AsyncClient(base_url=base_url) as client,
        ):
            stub = health_pb2_grpc.HealthStub(channel)
            pools, itself = (
                stub.Watch(health_pb2.HealthCheckRequest(service=service)) for service in (INFERENCE, SERVICE)
            )
            assert (await pools.read()).status == NOT_SERVING
            assert (await itself.read()).status == SERVING
            prefill = _join(running, "prefill-0")
            decode = _join(running, "decode-0")
            assert (await pools.read()).status == SERVING
            assert (await client.get("/readiness")).status_code == 200
            running.driver.lose("decode-0")
            assert (await pools.read()).status == NOT_SERVING
            response = await client.get("/readiness")
            assert (response.status_code, response.json()["error"]["message"]) == (503, "No decode worker serves now.")
            assert (await client.get("/liveness")).status_code == 200
            stopping = asyncio.create_task(running.stop(20.0))
            assert (await itself.read()).status == NOT_SERVING
            pools.cancel()
            itself.cancel()
            await stopping
            prefill.close()
            decode.close()

    asyncio.run(scene())
