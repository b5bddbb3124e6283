"""How a failed call ends: the error's status, its sentence and, in the trailing metadata, its name."""

from __future__ import annotations

import math

import grpc

from baton.protocol.errors import BatonError, Overloaded

RETRY_AFTER = "retry-after-ms"  # trailing metadata of a refusal
ERROR = "baton-error"  # trailing metadata of every failure: which of `baton.protocol.errors` it is


async def abort(context: grpc.aio.ServicerContext, error: BatonError) -> None:
    """End a call with the error's status, sentence and name, and its retry delay if it has one."""
    metadata = [(ERROR, type(error).__name__)]
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        metadata.append((RETRY_AFTER, str(math.ceil(1000 * error.retry_after_s))))
    await context.abort(getattr(grpc.StatusCode, error.grpc_status), error.message, tuple(metadata))
