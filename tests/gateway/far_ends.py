"""What a gateway is connected to, in one process: the sockets of a router and of a worker, which a test drives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from baton.builtin_model import CHECKPOINT
from baton.config.process_config import GatewayConfig, ResolvedModel
from baton.config.schema import GatewaySection, LoggingSection, TracingSection
from baton.gateway.build import RunningGateway, start_gateway
from baton.links.frame_client import FrameClient
from baton.links.frame_server import FrameServer
from baton.links.keys import peer_keys, public_key
from baton.protocol.codec import FROM_GATEWAY, FROM_GATEWAY_TO_WORKER
from baton.protocol.gateway_messages import (
    GatewayRegistered,
    LinkUp,
    Placed,
    RegisterGateway,
    RequestEnded,
    ServingPools,
    StepOutput,
    Submit,
    TokenOutput,
    WorkerJoined,
)
from baton.protocol.request import FinishReason
from baton.protocol.session_messages import Goodbye
from tests.links.ends import server
from tests.waiting import until_async

GATEWAY, WORKER = "gateway-0", "decode-0"
T = TypeVar("T")


def config(**section: Any) -> GatewayConfig:
    """A gateway of the built-in model on a free port, for a router that does not exist."""
    model = ResolvedModel(path=str(CHECKPOINT), dtype="float32", context_tokens=2048)
    listening = GatewaySection(**{"port": 0, "http_port": 0, **section})
    return GatewayConfig(GATEWAY, "tcp://127.0.0.1:9", model, "model", 16, listening, "127.0.0.1")


@dataclass(eq=False)
class FarEnds:
    """A router that accepts the gateway and places every request, and a worker that sends what a test orders."""

    secret: str = ""  # Of the cluster; "": open links
    router: FrameServer = field(init=False)
    worker: FrameClient | None = None
    received: list[Any] = field(default_factory=list)  # By the router and the worker
    router_up: bool = True
    attached: bool = False  # The gateway has answered the worker

    def __post_init__(self) -> None:
        self.router = server(self.secret, kinds=FROM_GATEWAY)

    def start(self) -> None:
        self.router.start(self._on_frame)

    def _on_frame(self, peer: str, incarnation: str, batch: list[Any]) -> None:
        self.received += batch
        for message in batch:
            if isinstance(message, RegisterGateway):
                key = public_key(self.secret, WORKER) if self.secret else ""
                joined = WorkerJoined(WORKER, key)
                self.router.send(peer, [GatewayRegistered("router", incarnation), joined, ServingPools(True, True)])
                if self.worker is None:
                    self.worker = self._connected(message.info.worker_address)
            elif isinstance(message, Submit):
                self.router.send(peer, [Placed(message.request_id, "prefill-0", WORKER)])

    def _connected(self, address: str) -> FrameClient:
        keys = peer_keys(self.secret, WORKER) if self.secret else None
        gateway_key = public_key(self.secret, GATEWAY) if self.secret else ""
        worker = FrameClient(address, WORKER, FROM_GATEWAY_TO_WORKER, "1", keys, gateway_key)
        worker.start(self._on_worker)
        return worker

    def _on_worker(self, changes: list[bool], batch: list[Any]) -> None:
        assert self.worker is not None
        self.received += batch
        self.attached = self.attached or bool(batch)
        if True in changes:
            self.worker.send([LinkUp(WORKER, "1")])

    def of(self, kind: type[T]) -> list[T]:
        """What was received of a kind, in order."""
        return [message for message in self.received if isinstance(message, kind)]

    async def until(self, kind: type[T], met: Callable[[T], bool] = lambda message: True) -> T:
        """Wait until a message of this kind has arrived; returns the first."""
        await until_async(lambda: any(met(message) for message in self.of(kind)))
        return next(message for message in self.of(kind) if met(message))

    async def send_tokens(self, request_id: str, indexes: range, ends: bool = False, **values: Any) -> None:
        """Send the tokens 'a', 'b', … of a request, all in one step; `ends`: the last is the end of the request."""
        await until_async(lambda: self.attached)
        assert self.worker is not None
        tokens = [TokenOutput(request_id, index, 100 + index % 26, **values) for index in indexes]
        if ends:
            tokens[-1].finish = FinishReason.LENGTH
        self.worker.send([StepOutput(tuple(tokens))])
        if ends and self.router_up:
            submissions = [submit.submission for submit in self.of(Submit) if submit.request_id == request_id]
            self.router.send(GATEWAY, [ended(request_id, indexes.stop, max(submissions, default=0))])

    def stop_router(self) -> None:
        self.router_up = False
        self.router.close()

    def restart_router(self) -> None:
        """A router without any memory takes over the address of the one that was stopped."""
        self.received.clear()
        self.router = server(self.secret, self.router.address, FROM_GATEWAY)
        self.start()
        self.router_up = True

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
        if self.router_up:
            self.router.close()


def ended(request_id: str, num_tokens: int, submission: int = 0) -> RequestEnded:
    """The router's end of a request, in answer to this submission."""
    ends = RequestEnded(request_id, FinishReason.LENGTH, num_tokens=num_tokens, submission=submission)
    return replace(ends, prefill_worker="prefill-0", decode_worker=WORKER)


@asynccontextmanager
async def gateway(
    secret: str = "", tracing: TracingSection | None = None, access_log: bool = False, **section: Any
) -> AsyncIterator[tuple[RunningGateway, FarEnds]]:
    """A gateway that is registered with a router's far end; `section`: keys of [gateway]."""
    far = FarEnds(secret)
    far.start()
    keys = peer_keys(secret, GATEWAY) if secret else None
    plan = replace(config(**section), router_address=far.router.address, link_keys=keys)
    plan = replace(plan, tracing=tracing or TracingSection(), logging=LoggingSection(access=access_log))
    running = await start_gateway(plan)
    try:
        try:
            await running.registered()
            yield running, far
        finally:
            await running.stop(0.0)
        await far.until(Goodbye)
    finally:
        far.close()
