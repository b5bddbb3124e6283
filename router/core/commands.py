"""The core's commands, which the driver and the simulator perform."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.gateway_messages import ToGateway
from baton.protocol.messages import RouterMessage
from baton.router.core.completion import Completion
from baton.router.core.operation import Operation


@dataclass(frozen=True, slots=True)
class SendToWorker:
    """Send a message to a worker."""

    worker: str
    message: RouterMessage


@dataclass(frozen=True, slots=True)
class SendToGateway:
    """Send a message to a gateway."""

    gateway: str
    message: ToGateway


@dataclass(frozen=True, slots=True)
class RequestCompleted:
    """A request has ended; its gateway gets a `RequestEnded`."""

    completion: Completion


@dataclass(frozen=True, slots=True)
class OperationUpdated:
    """An operation on the pools has made progress."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the process of a worker, for whose end releases of pages wait, or of a gateway: it has timed out."""

    peer: str


Command = SendToWorker | SendToGateway | RequestCompleted | OperationUpdated | Kill
