"""Builds a router from its plan: model facts, core, link, driver, gRPC server."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

import grpc

from cluster.plan import RouterPlan
from engine.checkpoint import model_id, read_config, resolve_model
from engine.tokenizer import Tokenizer
from router.core import RouterCore, RouterLimits
from router.driver import Driver
from router.policy.predicted_latency import PredictedLatency
from router.server import AdminService, InferenceService, ServedModel, start_server
from router.worker_link import WorkerLink


@dataclass(eq=False)
class RunningRouter:
    """A router that serves. `worker_address` is where workers connect, `port` where clients do."""

    driver: Driver
    server: grpc.aio.Server
    port: int
    worker_address: str
    task: asyncio.Task[None]

    async def stop(self, grace_s: float = 1.0) -> None:
        """Refuse new requests, give running streams `grace_s`, close everything."""
        await self.server.stop(grace_s)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.driver.link.close()


async def start_router(plan: RouterPlan) -> RunningRouter:
    """Start a router on the running event loop."""
    folder = resolve_model(plan.model)
    config, tokenizer = read_config(folder), Tokenizer(folder)
    model = ServedModel(plan.model_name, model_id(folder), config, tokenizer, plan.dtype, plan.context_tokens)
    limits = RouterLimits(max_queued=plan.max_queued, lost_after_s=plan.lost_after_s)
    core = RouterCore(uuid.uuid4().hex[:8], PredictedLatency(), tokenizer.decode, limits)
    driver = Driver(core, WorkerLink(f"tcp://{plan.worker_host}:*"))
    admin = AdminService(driver, model, plan.settings)
    server, port = await start_server(InferenceService(driver, model), admin, f"{plan.host}:{plan.port}")
    return RunningRouter(driver, server, port, driver.link.address, asyncio.create_task(driver.run()))
