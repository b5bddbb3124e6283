"""A mock prefill and a mock decode worker in one process, which speak the real worker protocol without computing.

A router accepts only workers of its own model, so they register with the built-in model's id. Routers in front of them
serve `builtin_model.CHECKPOINT`.

The prefill worker answers a request immediately with its first token. After the handoff, in which no pages are sent,
the decode worker adds one token per live stream and step, a step every `step_s` seconds (0: as fast as possible).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import zmq

from baton.builtin_model import CHECKPOINT
from baton.engine.checkpoint import model_id
from baton.protocol import codec
from baton.protocol.handoff import HandoffOutcome, Reservation
from baton.protocol.messages import (
    Cancel,
    HandoffEnded,
    LoadReport,
    Prefill,
    Register,
    RegisterAck,
    Reserve,
    Reserved,
    RouterMessage,
    SendPages,
    StepOutput,
    TokenOutput,
)
from baton.protocol.request import FinishReason
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo, WorkerLoad

PAGES = 1_000_000
REPORT_S = 0.5
ROLES = (RoleName.PREFILL, RoleName.DECODE)
Left = dict[tuple[str, int], float]  # (request, index) → time when the worker produced the token


@dataclass(eq=False)
class MockWorkers:
    """The state of both workers. `left` is recorded only while steps are paced."""

    sockets: dict[RoleName, Any]
    step_s: float = 0.0
    totals: dict[str, int] = field(default_factory=dict)  # Request → total number of tokens.
    live: dict[str, int] = field(default_factory=dict)  # Decoding request → its next index.
    left: Left = field(default_factory=dict)
    acknowledged: int = 0  # Workers that the router has registered.

    def send(self, role: RoleName, *messages: Any) -> None:
        """Send messages to the router as the worker of this role."""
        self.sockets[role].send(codec.encode_to_router(list(messages), "1"))

    def register(self) -> None:
        """Register both workers."""
        layout = PageLayout(PAGES, 1, 16, 1, 1, "float32", model_id(CHECKPOINT))  # A router refuses other models.
        for role in ROLES:
            endpoint = Endpoint(f"{role.value}:1", b"", 0, 0, layout)
            info = WorkerInfo(role.value, "1", role, 0, endpoint, 1 << 20, 1 << 20, pid=os.getpid())
            self.send(role, Register(info))

    def report(self) -> None:
        """Send both workers' load reports."""
        for role in ROLES:
            self.send(role, LoadReport(WorkerLoad(role.value, role, 0, 1, PAGES, PAGES, 0)))

    def on_message(self, role: RoleName, message: RouterMessage) -> None:
        """Handle a message from the router."""
        match message:
            case RegisterAck():
                self.acknowledged += 1
            case Prefill(request, _, disaggregated, _):
                self.totals[request.request_id] = request.sampling.max_tokens
                self.send(role, StepOutput((self._token(request.request_id, 0, time.monotonic()),)))
                if not disaggregated and request.request_id in self.totals:  # Not finished with its first token.
                    self.live[request.request_id] = 1
            case Reserve(reservation_id, request, _, _):
                pages = tuple(range(-(-len(request.prompt) // 16)))
                agent = f"{RoleName.DECODE.value}:1"
                known = len(request.prompt)
                reserved = Reservation(reservation_id, request.request_id, agent, pages, (1,) * len(pages), 0, known)
                self.send(role, Reserved(reserved))
            case SendPages(request_id, reservation):
                self.send(role, HandoffEnded(request_id, reservation.reservation_id, HandoffOutcome.DELIVERED))
                if request_id in self.totals:
                    self.live[request_id] = 1
            case Cancel(request_id):
                self.live.pop(request_id, None)
                self.totals.pop(request_id, None)

    def step(self) -> None:
        """Send one token for every live stream, in one message."""
        now = time.monotonic()
        outputs = []
        for name, index in list(self.live.items()):
            self.live[name] = index + 1
            outputs.append(self._token(name, index, now))
        self.send(RoleName.DECODE, StepOutput(tuple(outputs)))

    def _token(self, name: str, index: int, now: float) -> TokenOutput:
        if self.step_s:
            self.left[name, index] = now
        if index + 1 < self.totals[name]:
            return TokenOutput(name, index, 40 + index % 50)
        self.live.pop(name, None)
        del self.totals[name]
        return TokenOutput(name, index, 40 + index % 50, finish=FinishReason.LENGTH)


def mock_baton_process(router_address: str, pipe: Connection) -> None:
    """Run both workers, controlled over `pipe`.

    It sends True once registered. It then receives values of `step_s`, and answers each with the `Left` since the last
    one. It ends on None or when the pipe closes.
    """
    context = zmq.Context()
    poller = zmq.Poller()
    poller.register(pipe.fileno(), zmq.POLLIN)
    workers = MockWorkers({role: context.socket(zmq.DEALER) for role in ROLES})
    for role, socket in workers.sockets.items():
        socket.setsockopt(zmq.IDENTITY, role.value.encode())
        socket.connect(router_address)
        poller.register(socket, zmq.POLLIN)
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
        for role, socket in workers.sockets.items():
            while socket in ready and socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                for message in codec.decode_to_worker(socket.recv()):
                    workers.on_message(role, message)
        if not registered and workers.acknowledged == len(ROLES):
            registered = True
            pipe.send(True)
        if pipe.fileno() in ready:
            order = pipe.recv()
            if order is None:
                return
            workers.step_s, left, workers.left = order, workers.left, {}
            pipe.send(left)
