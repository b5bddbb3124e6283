"""A gRPC server for one service, with health checks and reflection: a gateway's and the router's for operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from baton.access.auth_interceptor import AuthInterceptor
from baton.access.credentials import Credentials
from baton.protocol.errors import ConfigError

MIB = 1 << 20
PINGS = [
    ("grpc.keepalive_time_ms", 20_000),  # A client that answers no ping is disconnected, and its requests are cancelled
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),  # gRPC's default allows one ping in five minutes
]


async def serve(
    address: str,
    service: str,
    role: str,
    credentials: Credentials,
    add: Callable[[grpc.aio.Server], object],
    health_service: health.aio.HealthServicer | None = None,
    share_port: bool = False,
) -> tuple[grpc.aio.Server, int]:
    """Serve the handlers that `add` adds, to callers with `role`, on "host:port" (port 0: any free port).

    Servers with `share_port` may listen on one port, where each gets a part of the connections. Health checks succeed;
    those of a given `health_service` fail until `set_serving`. Returns the server and its port; raises `ConfigError` if
    the address cannot be used.
    """
    tokens = credentials.tokens
    server = grpc.aio.server(
        interceptors=[] if tokens is None else [AuthInterceptor(tokens, role)],
        options=[
            ("grpc.max_receive_message_length", credentials.access.max_message_mib * MIB),
            ("grpc.so_reuseport", int(share_port)),
            *PINGS,
        ],
    )
    add(server)
    ready = health_service is None
    health_service = health_service or health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    await set_serving(health_service, ("", service), ready)
    reflection.enable_server_reflection((service, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        port = credentials.add_port(server, address)
    except RuntimeError:  # gRPC gives no reason
        raise ConfigError(
            f"{service} cannot be served on {address}: the port is in use, or this machine does not have the address."
        ) from None
    await server.start()
    return server, port


async def set_serving(health_service: health.aio.HealthServicer, services: Sequence[str], serving: bool) -> None:
    """What health checks of the services answer from now on; "" is the server."""
    status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in services:
        await health_service.set(name, status)
