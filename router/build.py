"""Builds a router from its configuration: core, link, driver, administration."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health

from baton.access.credentials import Credentials
from baton.access.grpc_server import set_serving
from baton.config.access import check_access
from baton.config.process_config import RouterAddresses, RouterConfig
from baton.config.schema import RouterSection
from baton.engine.checkpoint import model_id, resolve_model
from baton.http.server import HttpServer, start_http_server
from baton.links.frame_server import FrameServer
from baton.links.keys import peer_keys, public_key
from baton.logs import log
from baton.metrics.exposition import Exposition
from baton.protocol.address import is_loopback, join
from baton.protocol.codec import TO_ROUTER
from baton.protocol.link_keys import ROUTER
from baton.router.admin_calls import AdminCalls
from baton.router.admin_http import AdminHttp
from baton.router.admin_server import INFERENCE, AdminService, start_admin_server
from baton.router.core.core import RouterCore
from baton.router.core.peer_frames import PeerFrames
from baton.router.driver import Driver
from baton.router.metrics import RouterMetrics
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.output_length import OutputLength
from baton.router.policy.policies import make_policy
from baton.tracing.start import start_export

if TYPE_CHECKING:
    from baton.tracing.export import SpanExport


@dataclass(eq=False)
class RunningRouter:
    """A router that serves workers and gateways on its link, and operators on `admin_port`."""

    config: RouterConfig
    driver: Driver
    admin_server: grpc.aio.Server
    admin_port: int
    health_service: health.aio.HealthServicer
    admin_http: AdminHttp
    http_server: HttpServer | None
    task: asyncio.Task[None]
    spans: SpanExport | None

    @property
    def worker_address(self) -> str:
        """The address for workers and gateways."""
        return self.driver.link.address

    @property
    def addresses(self) -> RouterAddresses:
        """The addresses of its link and its server."""
        host, server = self.config.router.admin_host, self.http_server
        http = "" if server is None else join(host, server.port)
        return RouterAddresses(self.worker_address, join(host, self.admin_port), http)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Give running calls `grace_s` seconds and close everything; workers and gateways go on without a router."""
        await self.health_service.enter_graceful_shutdown()  # All fail from now on
        stopping = [self.admin_server.stop(grace_s)]
        if self.http_server is not None:
            stopping.append(self.http_server.stop(grace_s, self.admin_http.end_streams))
        await asyncio.gather(*stopping)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.driver.save_learned(self.driver.core.output_length)
        self.driver.link.close()
        if self.spans is not None:
            await self.spans.close()


def load_learned(path: Path | None) -> OutputLength:
    """Output lengths that an earlier router learned; empty without a readable file."""
    if path is None or not path.exists():
        return OutputLength()
    try:
        return OutputLength.loads(path.read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning(f"{path} has no valid output lengths and will be replaced: {error}")
        return OutputLength()


async def start_router(config: RouterConfig, state: ClusterState | None = None) -> RunningRouter:
    """Start a router on the running event loop; raises `ConfigError` for a configuration that cannot be served.

    `state` replaces the router's own view of its workers, for tests that record their reports.
    """
    access, section = config.access, config.router
    check_access(access, section.admin_host)
    credentials = Credentials(access)
    secret = config.link_secret

    def key_of(name: str) -> str:
        return public_key(secret, name) if secret else ""

    core = RouterCore(
        router_id=uuid.uuid4().hex[:8],
        placement=make_policy(section.policy, section.refuse_late),
        config=section,
        state=ClusterState() if state is None else state,
        output_length=load_learned(Path(section.state_file) if section.state_file else None),
        started_s=time.monotonic(),
        access=access,
        public_key=key_of,
    )
    core.automation.auto = section.auto_rebalance
    address = f"tcp://{join(config.worker_host, config.worker_port or '*')}"
    link = FrameServer(address, TO_ROUTER, key_of, peer_keys(secret, ROUTER) if secret else None)
    frames = PeerFrames(model_id(resolve_model(config.model.path)), config.model.context_tokens)
    driver = Driver(core, link, frames, config=section)
    health_service = health.aio.HealthServicer()
    driver.on_serving = partial(set_serving, health_service, (INFERENCE,))
    calls = AdminCalls(driver, config.model_name, config.settings)
    async with AsyncExitStack() as started:  # Undone if a port is in use
        started.callback(link.close)
        spans = start_export(config.tracing, ROUTER)
        if spans is not None:
            from baton.router.phase_spans import PhaseSpans

            driver.on_completed.append(PhaseSpans(spans).on_completed)
            started.push_async_callback(spans.close)
        admin_address = join(section.admin_host, section.admin_port)
        admin = AdminService(calls)
        admin_server, admin_port = await start_admin_server(admin, admin_address, credentials, health_service)
        started.push_async_callback(admin_server.stop, 0.0)
        metrics = Exposition(RouterMetrics(driver, config.model_name).read)
        loopback = is_loopback(section.admin_host)
        admin_http = AdminHttp(calls, metrics, credentials.tokens, loopback, bool(access.client_ca))
        http_server = await _start_http(admin_http, section, credentials)
        started.pop_all()
    task = asyncio.create_task(driver.run())
    servers = admin_server, admin_port, health_service, admin_http, http_server
    return RunningRouter(config, driver, *servers, task, spans)


async def _start_http(app: AdminHttp, section: RouterSection, credentials: Credentials) -> HttpServer | None:
    """Serve operators over HTTP, if configured."""
    if section.admin_http_port == "off":
        return None
    tls = credentials.ssl_context()
    server = await start_http_server(
        app, section.admin_host, section.admin_http_port, tls, key="router.admin_http_port"
    )
    app.feed.start()
    return server
