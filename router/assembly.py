"""Builds a router from its plan: model facts, core, link, driver, gRPC server."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from pathlib import Path

import grpc

from cluster.plan import RouterPlan
from engine.checkpoint import model_id, read_config, resolve_model
from engine.tokenizer import Tokenizer
from router.core import RouterCore
from router.driver import Driver
from router.limits import RouterLimits
from router.policy.output_length import OutputLength
from router.policy.policies import make_policy
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
        self.driver.save_learned(self.driver.core.output_length)
        self.driver.link.close()


def load_learned(path: Path | None) -> OutputLength:
    """What an earlier router learned of output lengths; a missing or unreadable file is an empty start."""
    if path is None or not path.exists():
        return OutputLength()
    try:
        return OutputLength.loads(path.read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"{path} holds no learned output lengths and will be replaced: {error}", flush=True)
        return OutputLength()


async def start_router(plan: RouterPlan) -> RunningRouter:
    """Start a router on the running event loop."""
    folder = resolve_model(plan.model)
    config, tokenizer = read_config(folder), Tokenizer(folder)
    model = ServedModel(plan.model_name, model_id(folder), config, tokenizer, plan.dtype, plan.context_tokens)
    limits = RouterLimits(max_queued=plan.max_queued, lost_after_s=plan.lost_after_s)
    placement = make_policy(plan.policy, plan.refuse_late)
    state_file = Path(plan.state_file) if plan.state_file else None
    core = RouterCore(uuid.uuid4().hex[:8], placement, tokenizer.decode, limits, output_length=load_learned(state_file))
    driver = Driver(core, WorkerLink(f"tcp://{plan.worker_host}:*"), state_file=state_file)
    admin = AdminService(driver, model, plan.settings)
    server, port = await start_server(InferenceService(driver, model), admin, f"{plan.host}:{plan.port}")
    return RunningRouter(driver, server, port, driver.link.address, asyncio.create_task(driver.run()))
