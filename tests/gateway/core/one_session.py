"""One session that tests drive by hand, and what they look for in its commands."""

from __future__ import annotations

from typing import Any, TypeVar

from baton.gateway.core.commands import (
    Command,
    EndStream,
    SendToRouter,
    SendToWorker,
    ShowTokens,
    StreamEnd,
)
from baton.gateway.core.session import GatewaySession
from baton.protocol.gateway_messages import (
    GatewayRegistered,
    StepOutput,
    TokenOutput,
    WorkerJoined,
)
from baton.protocol.request import FinishReason, Request, SamplingParams
from tests.gateway.core.small_cluster import INFO, MODEL
from tests.plain_vocabulary import LETTERS

T = TypeVar("T")
GRACE_S = 10.0


def ask(request_id: str = "r", **sampling: Any) -> Request:
    return Request(request_id, (65, 66, 67, 68, 69), SamplingParams(**{"max_tokens": 100} | sampling))


def start(*, up: bool = True) -> GatewaySession:
    """With the worker "w", and registered at a router if `up`."""
    gateway = GatewaySession(INFO, MODEL, LETTERS, GRACE_S)
    if up:
        gateway.on_router_link(True, 0.0)
        gateway.on_router_message(GatewayRegistered("router", "1"), 0.0)
    gateway.on_router_message(WorkerJoined("w"), 0.0)
    return gateway


def arrive(gateway: GatewaySession, *indexes: int, now: float = 1.0, last: int = -1, by: str = "w") -> list[Command]:
    """Tokens of "r": "a" at index 0, "b" at 1; `last` ends the output."""
    outputs = [TokenOutput("r", at, 97 + at, finish=FinishReason.STOP if at == last else None) for at in indexes]
    return gateway.on_worker_messages(by, "1", [StepOutput(tuple(outputs))], now)


def sent(commands: list[Command], kind: type[T]) -> list[T]:
    """The messages of one kind, to the router or a worker."""
    messages = [one.message for one in commands if isinstance(one, SendToRouter | SendToWorker)]
    return [message for message in messages if isinstance(message, kind)]


def shown(commands: list[Command]) -> list[int]:
    return [token.index for one in commands if isinstance(one, ShowTokens) for token in one.tokens]


def end_of(commands: list[Command]) -> StreamEnd:
    (end,) = [one.end for one in commands if isinstance(one, EndStream)]
    return end
