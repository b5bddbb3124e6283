"""A mock prefill and a mock decode worker in one process, which speak the real worker protocol without computing.

A router accepts only workers of its own model, so they register with the built-in model's id. Routers in front of them
serve `builtin_model.CHECKPOINT`.

The prefill worker answers a request immediately with its first token. After the handoff, in which no pages are sent,
the decode worker adds one token per live stream and step, a step every `step_s` seconds (0: as fast as possible).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import zmq

from baton.builtin_model import CHECKPOINT
from baton.engine.checkpoint import model_id
from baton.protocol import codec
from baton.protocol.gateway_messages import LinkUp, StepOutput, TokenOutput
from baton.protocol.handoff import HandoffOutcome, Reservation
from baton.protocol.messages import (
    Cancel,
    FirstToken,
    HandoffCommitted,
    HandoffEnded,
    Prefill,
    Reserve,
    Reserved,
    RouterMessage,
    SendPages,
    SequenceEnded,
)
from baton.protocol.request import FinishReason
from baton.protocol.session_messages import GatewayJoined, LoadReport, Register, RegisterAck
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo, WorkerLoad

PAGES = 1_000_000
REPORT_S = 0.5
ROLES = (RoleName.PREFILL, RoleName.DECODE)
Left = dict[tuple[str, int], float]  # (request, index) → time when the worker produced the token


@dataclass(eq=False)
class _Stream:
    """A request at the mock workers."""

    gateway: str
    total: int  # Tokens
    next_index: int = 0
    decoding: bool = False


@dataclass(eq=False)
class MockWorkers:
    """The state of both workers. `left` is recorded only while steps are paced."""

    context: zmq.Context[Any]
    poller: zmq.Poller
    router_address: str
    step_s: float = 0.0
    sockets: dict[RoleName, Any] = field(default_factory=dict)  # To the router
    gateways: dict[tuple[RoleName, str], Any] = field(default_factory=dict)  # To each gateway, by role
    streams: dict[str, _Stream] = field(default_factory=dict)
    left: Left = field(default_factory=dict)
    decode_steps: int = 0
    acknowledged: int = 0  # Workers that the router has registered.
    attached: int = 0  # Links that a gateway has opened.

    def __post_init__(self) -> None:
        self.sockets = {role: self._connect(role, self.router_address) for role in ROLES}

    def _connect(self, role: RoleName, address: str) -> Any:
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, role.value.encode())
        socket.connect(address)
        self.poller.register(socket, zmq.POLLIN)
        return socket

    @property
    def live(self) -> bool:
        """Whether a stream decodes."""
        return any(stream.decoding for stream in self.streams.values())

    def send(self, role: RoleName, *messages: Any) -> None:
        """Send messages to the router as the worker of this role."""
        self.sockets[role].send(codec.encode_frame(messages, "1"))

    def register(self) -> None:
        """Register both workers."""
        layout = PageLayout(PAGES, 1, 16, 1, 1, "float32", model_id(CHECKPOINT))  # A router refuses other models.
        for role in ROLES:
            endpoint = Endpoint(f"{role.value}:1", layout)
            info = WorkerInfo(role.value, "1", role, 0, endpoint, 1 << 20, 1 << 20, pid=os.getpid())
            self.send(role, Register(info))

    def report(self) -> None:
        """Send both workers' load reports."""
        for role in ROLES:
            load = WorkerLoad(role.value, role, 0, 1, PAGES, PAGES, 0, decode_steps=self.decode_steps)
            self.send(role, LoadReport(load))

    def receive(self, ready: dict[Any, int]) -> None:
        """Handle the messages of the sockets that are ready."""
        for role, socket in list(self.sockets.items()):
            for message in _frames(socket, ready, codec.FROM_ROUTER_TO_WORKER):
                self.on_message(role, message)
        for socket in self.gateways.values():
            self.attached += sum(1 for _ in _frames(socket, ready, codec.FROM_GATEWAY_TO_WORKER))

    def on_message(self, role: RoleName, message: RouterMessage) -> None:
        """Handle a message from the router."""
        match message:
            case RegisterAck():
                self.acknowledged += 1
            case GatewayJoined(gateway, _, address):
                socket = self.gateways[role, gateway] = self._connect(role, address)
                socket.send(codec.encode_frame([LinkUp(role.value, "1")], "1"))
            case Prefill(request_id, payload, gateway, disaggregated, _):
                total = codec.work_of(payload).request.sampling.max_tokens
                stream = self.streams[request_id] = _Stream(gateway, total, decoding=not disaggregated)
                self._to_gateways(role, [(stream, self._next(role, request_id, stream, time.monotonic()))])
                self.send(role, FirstToken(request_id))
            case Reserve(reservation_id, request_id, payload):
                known = len(codec.work_of(payload).request.prompt)
                pages = tuple(range(-(-known // 16)))
                agent = f"{RoleName.DECODE.value}:1"
                self.send(
                    role, Reserved(Reservation(reservation_id, request_id, agent, pages, (1,) * len(pages), 0, known))
                )
            case SendPages(request_id, reservation):
                self.send(role, HandoffEnded(request_id, reservation.reservation_id, HandoffOutcome.DELIVERED))
                self.send(RoleName.DECODE, HandoffCommitted(request_id, reservation.reservation_id))
                if request_id in self.streams:
                    self.streams[request_id].decoding = True
            case Cancel(request_id):
                self.streams.pop(request_id, None)

    def step(self) -> None:
        """Send one token for every live stream, in one message per gateway."""
        now = time.monotonic()
        self.decode_steps += 1
        decoding = [(name, stream) for name, stream in self.streams.items() if stream.decoding]
        role = RoleName.DECODE
        self._to_gateways(role, [(stream, self._next(role, name, stream, now)) for name, stream in decoding])

    def _to_gateways(self, role: RoleName, outputs: list[tuple[_Stream, TokenOutput]]) -> None:
        by_gateway: dict[str, list[TokenOutput]] = {}
        for stream, output in outputs:
            by_gateway.setdefault(stream.gateway, []).append(output)
        for gateway, tokens in by_gateway.items():
            self.gateways[role, gateway].send(codec.encode_frame([StepOutput(tuple(tokens))], "1"))

    def _next(self, role: RoleName, name: str, stream: _Stream, now: float) -> TokenOutput:
        index = stream.next_index
        stream.next_index += 1
        if self.step_s:
            self.left[name, index] = now
        if stream.next_index < stream.total:
            return TokenOutput(name, index, 40 + index % 50)
        del self.streams[name]
        self.send(role, SequenceEnded(name, FinishReason.LENGTH, stream.total))
        return TokenOutput(name, index, 40 + index % 50, finish=FinishReason.LENGTH)


def _frames(socket: Any, ready: dict[Any, int], kinds: frozenset[type]) -> Iterator[Any]:
    """The messages that a socket has; ZeroMQ's events are read again after each."""
    while socket in ready and socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
        yield from codec.decode_frame(socket.recv(), kinds)[1]


def mock_baton_process(router_address: str, pipe: Connection) -> None:
    """Run both workers, controlled over `pipe`.

    It sends True once both workers are registered and attached to a gateway. It then receives values of `step_s`, and
    answers each with the `Left` since the last one. It ends on None or when the pipe closes.
    """
    context = zmq.Context()
    poller = zmq.Poller()
    poller.register(pipe.fileno(), zmq.POLLIN)
    workers = MockWorkers(context, poller, router_address)
    workers.register()
    try:
        _serve(workers, poller, pipe)
    except (EOFError, BrokenPipeError):
        pass
    finally:
        context.destroy(linger=0)


def _serve(workers: MockWorkers, poller: zmq.Poller, pipe: Connection) -> None:
    next_step = next_report = time.monotonic()
    registered = False
    while True:
        now = time.monotonic()
        if now >= next_report:
            workers.report()
            next_report = now + REPORT_S
        if workers.live and now >= next_step:
            next_step = max(next_step + workers.step_s, now)
            workers.step()
        due = min(next_report, next_step) if workers.live else next_report
        ready = dict(poller.poll(max(0, int(1000 * (due - time.monotonic())))))
        workers.receive(ready)
        if not registered and min(workers.acknowledged, workers.attached) >= len(ROLES):
            registered = True
            pipe.send(True)
        if pipe.fileno() in ready:
            order = pipe.recv()
            if order is None:
                return
            workers.step_s, left, workers.left = order, workers.left, {}
            pipe.send(left)
