"""A gRPC server for one service, with health and reflection beside it; the router runs two of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.errors import BatonError, ConfigError, Overloaded

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
RETRY_AFTER = "retry-after-ms"  # trailing metadata of a refusal
ERROR = "baton-error"  # trailing metadata of every failure: which of `cluster.errors` it is


async def serve(address: str, service: str, add: Callable[[grpc.aio.Server], object]) -> tuple[grpc.aio.Server, int]:
    """Serve on `address` ("host:port", port 0 for any) what `add` adds; returns the server and its port."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)])
    add(server)
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    for name in ("", service):
        await health_service.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((service, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"{service} cannot be served on {address}: {error}.") from None
    await server.start()
    return server, port


async def abort(context: grpc.aio.ServicerContext, error: BatonError) -> None:
    """End a call with the error's status, sentence and name, and when to retry where that can be told."""
    metadata = [(ERROR, type(error).__name__)]
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        metadata.append((RETRY_AFTER, str(math.ceil(1000 * error.retry_after_s))))
    await context.abort(getattr(grpc.StatusCode, error.grpc_status), error.message, tuple(metadata))
