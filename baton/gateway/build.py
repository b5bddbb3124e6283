"""Builds a gateway from its configuration: model facts, session, links, driver, gRPC and HTTP servers."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health

from baton import __version__
from baton.access.credentials import Credentials
from baton.access.grpc_server import set_serving
from baton.config.process_config import GatewayAddresses, GatewayConfig
from baton.config.schema import GatewaySection
from baton.engine.checkpoint import model_id, read_config, resolve_model
from baton.engine.tokenizer import Tokenizer
from baton.gateway.access_lines import write_access_line, write_refusal_line
from baton.gateway.core.live_stream import ModelFacts
from baton.gateway.core.session import GatewaySession
from baton.gateway.driver import GatewayDriver
from baton.gateway.grpc_service import SERVICE, InferenceService, start_server
from baton.gateway.http.app import HttpApp
from baton.gateway.http.metrics_app import MetricsApp
from baton.gateway.http.tokenizer_files import read_tokenizer_info
from baton.gateway.intake import Intake
from baton.gateway.metrics import GatewayMetrics
from baton.gateway.served_model import ServedModel
from baton.gateway.template_files import read_chat_template
from baton.http.server import HttpServer, start_http_server
from baton.links.frame_client import FrameClient
from baton.links.frame_server import FrameServer
from baton.metrics.exposition import Exposition
from baton.protocol.address import join, reachable, split
from baton.protocol.codec import FROM_ROUTER_TO_GATEWAY, FROM_WORKER_TO_GATEWAY
from baton.protocol.gateway_messages import GatewayInfo
from baton.tracing.start import start_export

if TYPE_CHECKING:
    from baton.tracing.export import SpanExport

METRICS_CONNECTIONS = 64


@dataclass(eq=False)
class RunningGateway:
    """A gateway that serves clients on `port` and, over HTTP, on `http_port`, with a router or without."""

    config: GatewayConfig
    driver: GatewayDriver
    server: grpc.aio.Server
    port: int
    http_app: HttpApp
    http_server: HttpServer | None
    metrics_server: HttpServer | None
    task: asyncio.Task[None]
    spans: SpanExport | None

    @property
    def addresses(self) -> GatewayAddresses:
        """The addresses of its servers and its worker link."""
        public = self.driver.session.info.public_address
        http = "" if self.http_port is None else join(split(public)[0], self.http_port)
        return GatewayAddresses(self.driver.workers.address, public, http)

    @property
    def http_port(self) -> int | None:
        """The port of its HTTP server, if it has one."""
        return None if self.http_server is None else self.http_server.port

    async def registered(self) -> None:
        """Wait until the router has answered the registration."""
        await self.driver.registered.wait()

    async def stop(self, grace_s: float = 1.0) -> None:
        """Refuse new requests, give running streams `grace_s` seconds, and close everything."""
        await self.driver.begin_stop()
        stopping = [self.server.stop(grace_s)]
        if self.http_server is not None:
            stopping.append(self.http_server.stop(grace_s, self.http_app.end_answers))
        if self.metrics_server is not None:
            stopping.append(self.metrics_server.stop(0.0, _nothing))
        await asyncio.gather(*stopping)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.driver.leave()
        self.driver.workers.close()
        self.driver.router.close()
        if self.spans is not None:
            await self.spans.close()


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
        read_chat_template(folder, config.template_text),
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
            GatewaySession(info, facts, tokenizer, section.router_grace_s, time.time() - time.monotonic()),
            router,
            workers,
            write_timeout_s=section.write_timeout_s,
            waiting_bytes=lambda: intake.encoding.waiting_bytes,
            on_ready=partial(set_serving, health_service, ("", SERVICE)),
            worker_keys=worker_keys,
        )
        spans = _observe(driver, config)
        if spans is not None:
            started.push_async_callback(spans.close)
        inference = InferenceService(driver, intake, credentials.tokens)
        server, port = await start_server(inference, join(section.host, section.port), credentials, health_service)
        started.push_async_callback(server.stop, 0.0)
        tokenizer_info = read_tokenizer_info(folder, model.template)
        metrics = Exposition(GatewayMetrics(driver, config.model_name, credentials.tokens is not None).read)
        http_app = HttpApp(driver, intake, credentials.tokens, tokenizer_info, __version__, metrics)
        http_server = await _start_http(http_app, section, credentials)
        if http_server is not None:
            started.push_async_callback(http_server.stop, 0.0, http_app.end_answers)
        metrics_server = await _start_metrics(MetricsApp(metrics, credentials.tokens), section, credentials)
        public = reachable(join(section.host, port), config.worker_host)
        scraped = "" if metrics_server is None else join(split(public)[0], metrics_server.port)
        driver.session.info = replace(info, public_address=public, metrics_address=scraped)
        started.pop_all()
    task = asyncio.create_task(driver.run())
    return RunningGateway(config, driver, server, port, http_app, http_server, metrics_server, task, spans)


def _observe(driver: GatewayDriver, config: GatewayConfig) -> SpanExport | None:
    """Log and trace the requests that have ended, if configured."""
    if config.logging.access:
        driver.on_ended.append(write_access_line)
        driver.on_refused.append(write_refusal_line)
    spans = start_export(config.tracing, config.name)
    if spans is not None:
        from baton.gateway.request_spans import RequestSpans

        driver.traces = RequestSpans(spans, config.model_name, config.tracing.sample)
        driver.on_ended.append(driver.traces.on_ended)
    return spans


def _nothing() -> None:
    """In place of ending streams."""


async def _start_metrics(app: MetricsApp, section: GatewaySection, credentials: Credentials) -> HttpServer | None:
    """Serve metrics on a port of this gateway alone, if configured."""
    if section.metrics_port == "off":
        return None
    tls = credentials.ssl_context()
    return await start_http_server(
        app, section.host, section.metrics_port, tls, key="gateway.metrics_port", max_connections=METRICS_CONNECTIONS
    )


async def _start_http(app: HttpApp, section: GatewaySection, credentials: Credentials) -> HttpServer | None:
    """Serve HTTP, if configured."""
    if section.http_port == "off":
        return None
    return await start_http_server(
        app,
        section.host,
        section.http_port,
        credentials.ssl_context(),
        key="gateway.http_port",
        share_port=True,
        write_timeout_s=section.write_timeout_s,
    )
