"""Builds a router from its plan: model facts, core, link, driver, the two gRPC servers."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc

from baton.config.access import check_access
from baton.config.plan import RouterAddresses, RouterConfig
from baton.engine.checkpoint import model_id, read_config, resolve_model
from baton.engine.tokenizer import Tokenizer
from baton.logs import log
from baton.protocol.address import join
from baton.router.access.credentials import Credentials
from baton.router.admin_server import AdminService, start_admin_server
from baton.router.core.core import RouterCore
from baton.router.core.worker_frames import WorkerFrames
from baton.router.driver import Driver
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.output_length import OutputLength
from baton.router.policy.policies import make_policy
from baton.router.server import InferenceService, ServedModel, start_server
from baton.router.worker_link import WorkerLink


@dataclass(eq=False)
class RunningRouter:
    """A router that serves clients on `port` and operators on `admin_port`."""

    plan: RouterConfig
    driver: Driver
    server: grpc.aio.Server
    port: int
    admin_server: grpc.aio.Server
    admin_port: int
    task: asyncio.Task[None]

    @property
    def worker_address(self) -> str:
        """Where workers connect."""
        return self.driver.link.address

    @property
    def addresses(self) -> RouterAddresses:
        """The addresses of its servers and its worker link."""
        config = self.plan.router
        public, admin = join(config.host, self.port), join(config.admin_host, self.admin_port)
        return RouterAddresses(self.worker_address, public, admin)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Refuse new requests, give running streams `grace_s`, close everything."""
        await asyncio.gather(self.server.stop(grace_s), self.admin_server.stop(grace_s))
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.driver.save_learned(self.driver.core.output_length)
        self.driver.link.close()


def load_learned(path: Path | None) -> OutputLength:
    """Output lengths that an earlier router learned; without a readable file, none."""
    if path is None or not path.exists():
        return OutputLength()
    try:
        return OutputLength.loads(path.read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning(f"{path} holds no learned output lengths and will be replaced: {error}")
        return OutputLength()


async def start_router(plan: RouterConfig, state: ClusterState | None = None) -> RunningRouter:
    """Start a router on the running event loop; raises `ConfigError` when its plan cannot or must not be served.

    `state` replaces the router's own view of its workers, for a test that also records their reports.
    """
    access, config = plan.access, plan.router
    check_access(access, config.admin_host)
    credentials = Credentials(access)
    folder = resolve_model(plan.model.path)
    model_config, tokenizer = read_config(folder), Tokenizer(folder)
    model = ServedModel(
        plan.model_name,
        model_id(folder),
        model_config,
        tokenizer,
        plan.model.dtype,
        plan.model.context_tokens,
        plan.sampling_defaults,
    )
    core = RouterCore(
        router_id=uuid.uuid4().hex[:8],
        placement=make_policy(config.policy, config.refuse_late),
        vocabulary=tokenizer,
        config=config,
        state=ClusterState(share_prefixes=access.share_prefixes) if state is None else state,
        output_length=load_learned(Path(config.state_file) if config.state_file else None),
        started_s=time.monotonic(),
    )
    core.automation.auto = config.auto_rebalance
    link = WorkerLink(f"tcp://{join(plan.worker_host, plan.worker_port or '*')}", plan.link_keys)
    frames = WorkerFrames(model.model_id, model_config.vocab_size, plan.model.context_tokens)
    driver = Driver(core, link, frames, config=config)
    admin = AdminService(driver, plan.model_name, plan.settings)
    inference = InferenceService(driver, model, access, credentials.tokens)
    async with AsyncExitStack() as started:  # what is ended again when a port is taken
        started.callback(link.close)
        admin_address = join(config.admin_host, config.admin_port)
        admin_server, admin_port = await start_admin_server(admin, admin_address, credentials)
        started.push_async_callback(admin_server.stop, 0.0)
        server, port = await start_server(inference, join(config.host, config.port), credentials)
        started.pop_all()
    return RunningRouter(plan, driver, server, port, admin_server, admin_port, asyncio.create_task(driver.run()))
