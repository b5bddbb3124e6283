"""What the core wants done: the driver and the simulator perform it."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.messages import RouterMessage
from router.operation import Operation
from router.record import Completion
from router.stream import TextToken


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a message to a worker."""

    worker: str
    message: RouterMessage


@dataclass(frozen=True, slots=True)
class Show:
    """Stream tokens to the client."""

    request_id: str
    tokens: list[TextToken]


@dataclass(frozen=True, slots=True)
class Close:
    """End the client's stream."""

    completion: Completion


@dataclass(frozen=True, slots=True)
class Moved:
    """An operation, or a step of it, has changed."""

    operation: Operation


Command = Tell | Show | Close | Moved
