"""Workers driven by hand: roles over real engines and NIXL, without router, link or loop.

The second worker lives in a process of its own and takes its orders from a pipe.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from baton.wire import decode_notice, encode_notice
from benchmarks.gpu.device import Device, prepare
from cluster.messages import WorkerMessage
from cluster.worker import Endpoint, PageLayout
from kv_transfer.nixl import NixlTransport
from kv_transfer.transport import Notice, WriteDone, WriteFailed
from worker.role import Command, Role, Send, WriteEnded, WritePages

POLL_S = 0.0002
PROCESS_START_S = 120.0
PAGES_AT_ONCE = 32  # that are summed: a sum takes eight times their memory


@dataclass(eq=False)
class HandDriven:
    """A role, its executor and its transport; `turn` is one turn of a worker's loop."""

    role: Role
    executor: Any
    transport: NixlTransport
    said: list[WorkerMessage] = field(default_factory=list)
    _writes: dict[int, int] = field(default_factory=dict)

    def perform(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Send):
                self.said.append(command.message)
            elif isinstance(command, WritePages):
                notice = encode_notice(command.notice) if command.notice else None
                transfer = self.transport.write(command.agent, command.source_pages, command.target_pages, notice)
                self._writes[transfer] = command.write_id

    def turn(self) -> bool:
        """Whether there was anything to compute."""
        commands, plan = self.role.plan(time.monotonic())
        self.perform(commands)
        if plan is not None:
            result = self.executor.execute(plan)
            self.poll()
            self.perform(self.role.absorb(plan, result, time.monotonic()))
        self.poll()
        return plan is not None

    def poll(self) -> None:
        for event in self.transport.poll():
            match event:
                case WriteDone(transfer_id, num_bytes, seconds):
                    outcome = WriteEnded(self._writes.pop(transfer_id), num_bytes, seconds)
                    self.perform(self.role.on_write_ended(outcome, time.monotonic()))
                case WriteFailed(transfer_id, reason):
                    outcome = WriteEnded(self._writes.pop(transfer_id), 0, 0.0, reason)
                    self.perform(self.role.on_write_ended(outcome, time.monotonic()))
                case Notice(_, payload):
                    self.perform(self.role.on_notice(decode_notice(payload), time.monotonic()))

    def heard(self, kind: type) -> list[Any]:
        """What it said of this kind, once."""
        found = [message for message in self.said if isinstance(message, kind)]
        self.said = [message for message in self.said if not isinstance(message, kind)]
        return found

    def until(self, kind: type, timeout_s: float = 60.0) -> Any:
        """Turn until it says this; raises `TimeoutError`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.heard(kind)
            if found:
                return found[0]
            if not self.turn() and time.monotonic() > deadline:
                raise TimeoutError(f"{kind.__name__} did not come within {timeout_s:g} s.")


def page_sums(pages: torch.Tensor, page_ids: list[int]) -> list[int]:
    """A number per page that depends on every bit of it."""
    sums: list[int] = []
    for first in range(0, len(page_ids), PAGES_AT_ONCE):
        words = pages[page_ids[first : first + PAGES_AT_ONCE]].flatten(1).view(torch.int16).long()
        weights = torch.arange(1, words.shape[1] + 1, device=words.device) % 65521
        sums += (words * weights).sum(1).tolist()
    return sums


@dataclass(eq=False)
class Peer:
    """A process at the other end of a pipe; every order is answered. Use it with `with`."""

    target: Callable[..., None]
    arguments: tuple[Any, ...]
    _process: Any = field(init=False)
    _pipe: Connection = field(init=False)

    def __enter__(self) -> Peer:
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_guarded, args=(self.target, theirs, self.arguments), daemon=True)
        self._process.start()
        theirs.close()
        return self

    def answer(self, timeout_s: float = PROCESS_START_S) -> Any:
        """What it says next; raises when it failed, ended or says nothing."""
        if not self._pipe.poll(timeout_s):
            raise TimeoutError(f"The other process said nothing for {timeout_s:g} s.")
        try:
            said = self._pipe.recv()
        except EOFError:
            self._process.join(5)
            raise RuntimeError(f"The other process ended with code {self._process.exitcode}.") from None
        if isinstance(said, Exception):
            raise said
        return said

    def ask(self, order: Any, timeout_s: float = PROCESS_START_S) -> Any:
        self._pipe.send(order)
        return self.answer(timeout_s)

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join(10)
        self._pipe.close()


def _guarded(target: Callable[..., None], pipe: Connection, arguments: tuple[Any, ...]) -> None:
    try:
        target(pipe, *arguments)
    except Exception as error:  # noqa: BLE001 - told to whoever waits
        traceback.print_exc()
        pipe.send(RuntimeError(f"In the other process: {type(error).__name__}: {error}"))
    finally:
        os._exit(0)  # NIXL and CUDA may take long to unwind, and nobody waits for it


def page_receiver(pipe: Connection, device_name: str, layout: PageLayout) -> None:
    """A peer that only has pages: says its endpoint, connects to who is sent, and sums pages when asked for it."""
    device = prepare(device_name)
    pages = torch.empty(layout.shape, dtype=getattr(torch, layout.dtype), device=device.name).zero_()
    device.synchronize()
    transport = NixlTransport(pages, layout, "receiver:1")
    pipe.send(transport.endpoint)
    notices = 0
    while True:
        if pipe.poll(POLL_S):
            order = pipe.recv()
            if isinstance(order, Endpoint):
                transport.connect(order)
                pipe.send("connected")
            else:
                pipe.send((notices, page_sums(pages, order)))
        notices += sum(isinstance(event, Notice) for event in transport.poll())


def handshake(transport: NixlTransport, peer: Peer, endpoint: Endpoint, device: Device) -> None:
    """Connect both ways, and wait until neither greets any more."""
    device.synchronize()
    transport.connect(endpoint)
    peer.ask(transport.endpoint)
    deadline = time.monotonic() + 10
    while transport.in_flight and time.monotonic() < deadline:
        transport.poll()
