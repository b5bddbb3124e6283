"""What the core wants done: the driver and the simulator perform it."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.messages import RouterMessage
from baton.router.core.operation import Operation
from baton.router.core.record import Completion
from baton.router.core.stream import TextToken


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
    """An operation on the pools has come further."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker's process, whatever it does: it has been silent for long, and others wait for its end."""

    worker: str


Command = Tell | Show | Close | Moved | Kill
