"""Builds a gateway from its configuration: model facts, session, links, driver, gRPC server."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial

import grpc
from grpc_health.v1 import health

from baton.access.credentials import Credentials
from baton.access.grpc_server import set_serving
from baton.config.process_config import GatewayAddresses, GatewayConfig
from baton.engine.checkpoint import model_id, read_config, resolve_model
from baton.engine.tokenizer import Tokenizer
from baton.gateway.core.live_stream import ModelFacts
from baton.gateway.core.session import GatewaySession
from baton.gateway.driver import GatewayDriver
from baton.gateway.grpc_service import SERVICE, InferenceService, start_server
from baton.gateway.intake import Intake
from baton.gateway.served_model import ServedModel
from baton.gateway.template_files import read_chat_template
from baton.links.frame_client import FrameClient
from baton.links.frame_server import FrameServer
from baton.protocol.address import join, reachable
from baton.protocol.codec import FROM_ROUTER_TO_GATEWAY, FROM_WORKER_TO_GATEWAY
from baton.protocol.gateway_messages import GatewayInfo


@dataclass(eq=False)
class RunningGateway:
    """A gateway that serves clients on `port`, with a router or without."""

    config: GatewayConfig
    driver: GatewayDriver
    server: grpc.aio.Server
    port: int
    task: asyncio.Task[None]

    @property
    def addresses(self) -> GatewayAddresses:
        """The addresses of its server and its worker link."""
        return GatewayAddresses(self.driver.workers.address, self.driver.session.info.public_address)

    async def registered(self) -> None:
        """Wait until the router has answered the registration."""
        await self.driver.registered.wait()

    async def stop(self, grace_s: float = 1.0) -> None:
        """Refuse new requests, give running streams `grace_s` seconds, and close everything."""
        await self.server.stop(grace_s)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.driver.leave()
        self.driver.workers.close()
        self.driver.router.close()


async def start_gateway(config: GatewayConfig) -> RunningGateway:
    """Start a gateway on the running event loop; raises `ConfigError` for a configuration that cannot be served."""
    access, section = config.access, config.gateway
    credentials = Credentials(access)
    folder = resolve_model(config.model.path)
    model_config, tokenizer = read_config(folder), Tokenizer(folder)
    model = ServedModel(
        config.model_name,
        model_id(folder),
        model_config,
        tokenizer,
        config.model.dtype,
        config.model.context_tokens,
        config.sampling_defaults,
        read_chat_template(folder, config.chat_template),
    )
    intake = Intake(model, access)
    health_service = health.aio.HealthServicer()
    worker_keys: dict[str, str] = {}
    incarnation = uuid.uuid4().hex[:8]
    async with AsyncExitStack() as started:  # Undone if a port is in use
        workers = FrameServer(
            f"tcp://{join(config.worker_host, config.worker_port or '*')}",
            FROM_WORKER_TO_GATEWAY,
            lambda worker: worker_keys.get(worker, ""),
            config.link_keys,
        )
        started.callback(workers.close)
        router = FrameClient(config.router_address, config.name, FROM_ROUTER_TO_GATEWAY, incarnation, config.link_keys)
        started.callback(router.close)
        info = GatewayInfo(config.name, incarnation, workers.address, host=socket.gethostname(), pid=os.getpid())
        facts = ModelFacts(model.model_id, config.page_size, model_config.vocab_size, access.share_prefixes)
        driver = GatewayDriver(
            GatewaySession(info, facts, tokenizer, section.router_grace_s),
            router,
            workers,
            write_timeout_s=section.write_timeout_s,
            waiting_bytes=lambda: intake.encoding.waiting_bytes,
            on_serving=partial(set_serving, health_service, SERVICE),
            worker_keys=worker_keys,
        )
        inference = InferenceService(driver, intake, credentials.tokens)
        server, port = await start_server(inference, join(section.host, section.port), credentials, health_service)
        public = reachable(join(section.host, port), config.worker_host)
        driver.session.info = replace(info, public_address=public)
        started.pop_all()
    return RunningGateway(config, driver, server, port, asyncio.create_task(driver.run()))
