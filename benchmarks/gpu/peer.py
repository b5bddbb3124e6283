"""The other side of a handoff: a child process that receives orders from a pipe."""

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

from baton.harness.forked import forked
from baton.kv_transfer.nixl import NixlTransport
from baton.kv_transfer.transport import Notice
from baton.protocol.worker import Endpoint, PageLayout
from benchmarks.gpu.device import Device, prepare

POLL_S = 0.0002
PROCESS_START_S = 120.0
PAGES_AT_ONCE = 32  # Pages summed at once: a sum takes eight times their memory.


def page_sums(pages: torch.Tensor, page_ids: list[int]) -> list[int]:
    """A checksum of every page."""
    sums: list[int] = []
    for first in range(0, len(page_ids), PAGES_AT_ONCE):
        words = pages[page_ids[first : first + PAGES_AT_ONCE]].flatten(1).view(torch.int16).long()
        weights = torch.arange(1, words.shape[1] + 1, device=words.device) % 65521
        sums += (words * weights).sum(1).tolist()
    return sums


@dataclass(eq=False)
class Peer:
    """A child process that answers every order. Use it in a `with` statement."""

    target: Callable[..., None]
    arguments: tuple[Any, ...]
    _process: Any = field(init=False)
    _pipe: Connection = field(init=False)

    def __enter__(self) -> Peer:
        self._pipe, theirs = mp.Pipe()
        self._process = forked(_guarded, self.target, theirs, self.arguments)
        self._process.start()
        theirs.close()
        return self

    def answer(self, timeout_s: float = PROCESS_START_S) -> Any:
        """Its next answer; raises its error, `RuntimeError` when it has ended, and `TimeoutError`."""
        if not self._pipe.poll(timeout_s):
            raise TimeoutError(f"The other process sent nothing for {timeout_s:g} s.")
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join(5)
            raise RuntimeError(f"The other process ended with code {self._process.exitcode}.") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask(self, order: Any, timeout_s: float = PROCESS_START_S) -> Any:
        """Send an order; returns its answer, and raises as `answer` does."""
        self._pipe.send(order)
        return self.answer(timeout_s)

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join(10)
        self._pipe.close()


def _guarded(target: Callable[..., None], pipe: Connection, arguments: tuple[Any, ...]) -> None:
    try:
        target(pipe, *arguments)
    except Exception as error:  # noqa: BLE001 - sent to the parent
        traceback.print_exc()
        pipe.send(RuntimeError(f"In the other process: {type(error).__name__}: {error}"))
    finally:
        os._exit(0)  # NIXL and CUDA may take long to unwind.


def page_receiver(pipe: Connection, device_name: str, layout: PageLayout) -> None:
    """A peer with nothing but pages: sends its endpoint, connects to received endpoints, and sums pages on request."""
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
    """Connect both ways, and wait until the greetings have been answered."""
    device.synchronize()
    transport.connect(endpoint)
    peer.ask(transport.endpoint)
    deadline = time.monotonic() + 10
    while transport.in_flight and time.monotonic() < deadline:
        transport.poll()
