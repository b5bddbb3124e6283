"""The core's commands, which the driver and the simulator perform."""

from __future__ import annotations

from dataclasses import dataclass

from baton.gateway.core.stream import TextToken
from baton.protocol.messages import RouterMessage
from baton.router.core.completion import Completion
from baton.router.core.operation import Operation


@dataclass(frozen=True, slots=True)
class SendToWorker:
    """Send a message to a worker."""

    worker: str
    message: RouterMessage


@dataclass(frozen=True, slots=True)
class StreamTokens:
    """Stream tokens to the client."""

    request_id: str
    tokens: list[TextToken]


@dataclass(frozen=True, slots=True)
class FinishStream:
    """End the client's stream."""

    completion: Completion


@dataclass(frozen=True, slots=True)
class OperationUpdated:
    """An operation on the pools has made progress."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill a worker's process: it has timed out, and releases of pages wait for its end."""

    worker: str


Command = SendToWorker | StreamTokens | FinishStream | OperationUpdated | Kill
