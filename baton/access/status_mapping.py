"""Maps an error to the end of a gRPC call: status, message and, in the trailing metadata, the error's name."""

from __future__ import annotations

import math

import grpc

from baton.protocol.errors import BatonError, Overloaded

RETRY_AFTER = "retry-after-ms"  # Trailing metadata of a refusal
ERROR = "baton-error"  # Trailing metadata of every failure: its class in `baton.protocol.errors`


async def abort(context: grpc.aio.ServicerContext, error: BatonError) -> None:
    """End a call with the error's status, message, name and, if it has one, retry delay. Always raises."""
    metadata = [(ERROR, type(error).__name__)]
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        metadata.append((RETRY_AFTER, str(math.ceil(1000 * error.retry_after_s))))
    await context.abort(getattr(grpc.StatusCode, error.grpc_status), error.message, tuple(metadata))
