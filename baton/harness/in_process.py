"""A transport between workers of one process, for tests and benchmarks.

Copies happen in `progress` and `poll`, not in `write`, so that tests see writes in flight.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import torch

from baton.kv_transfer.transport import Notice, TransferEvent, WriteDone, WriteFailed
from baton.protocol.errors import HandoffFailed
from baton.protocol.worker import Endpoint, PageLayout


@dataclass(eq=False)
class InProcessNetwork:
    """A set of transports that can reach each other. Writes to agents in `unreachable` fail."""

    transports: dict[str, InProcessTransport] = field(default_factory=dict)
    unreachable: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Write:
    transfer_id: int
    agent: str
    source_pages: tuple[int, ...]
    target_pages: tuple[int, ...]
    notice: bytes | None


class InProcessTransport:
    """`Transport` for page storage `pages`, with peers in `network`."""

    def __init__(self, network: InProcessNetwork, pages: torch.Tensor, layout: PageLayout, agent: str) -> None:
        self.pages = pages
        self.notices: deque[Notice] = deque()
        self._network = network
        self._layout = layout
        self._name = agent
        self._peers: dict[str, Endpoint] = {}
        self._writes: list[_Write] = []
        self._ended: list[TransferEvent] = []
        self._ids = count()
        network.transports[agent] = self

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self._name, self._layout)

    @property
    def in_flight(self) -> int:
        return len(self._writes) + len(self._ended)

    def connect(self, peer: Endpoint) -> None:
        if peer.layout.fingerprint != self._layout.fingerprint:
            raise HandoffFailed(f"{peer.agent} has pages {peer.layout.fingerprint}, not {self._layout.fingerprint}.")
        if self._target(peer.agent) is None:
            raise HandoffFailed(f"{peer.agent} cannot be reached.")
        self._peers[peer.agent] = peer

    def disconnect(self, agent: str) -> None:
        self._peers.pop(agent, None)
        gone = [write for write in self._writes if write.agent == agent]
        self._writes = [write for write in self._writes if write.agent != agent]
        self._ended += [WriteFailed(write.transfer_id, f"{agent} was disconnected") for write in gone]

    def write(self, agent: str, source_pages: Sequence[int], target_pages: Sequence[int], notice: bytes | None) -> int:
        peer = self._peers.get(agent)
        if peer is None:
            raise HandoffFailed(f"{agent} is not connected.")
        if len(source_pages) != len(target_pages):
            raise HandoffFailed(f"{len(source_pages)} pages cannot be written to {len(target_pages)}.")
        for pages, layout in ((source_pages, self._layout), (target_pages, peer.layout)):
            if pages and not (min(pages) >= 0 and max(pages) < layout.num_pages):
                raise HandoffFailed(f"A page id is outside 0 to {layout.num_pages - 1}.")
        transfer_id = next(self._ids)
        self._writes.append(_Write(transfer_id, agent, tuple(source_pages), tuple(target_pages), notice))
        return transfer_id

    def progress(self) -> None:
        writes, self._writes = self._writes, []
        self._ended += [self._copy(write) for write in writes]

    def poll(self) -> list[TransferEvent]:
        self.progress()
        events: list[TransferEvent] = [*self.notices, *self._ended]
        self.notices.clear()
        self._ended = []
        return events

    def _copy(self, write: _Write) -> TransferEvent:
        target = self._target(write.agent)
        if target is None:
            return WriteFailed(write.transfer_id, f"{write.agent} cannot be reached")
        started_s = time.perf_counter()
        if write.source_pages:
            target.pages[list(write.target_pages)] = self.pages[list(write.source_pages)]
        if write.notice is not None:
            target.notices.append(Notice(self._name, write.notice))
        num_bytes = len(write.source_pages) * self._layout.page_bytes
        return WriteDone(write.transfer_id, num_bytes, time.perf_counter() - started_s)

    def _target(self, agent: str) -> InProcessTransport | None:
        return None if agent in self._network.unreachable else self._network.transports.get(agent)

    def close(self) -> None:
        if self._network.transports.get(self._name) is self:
            del self._network.transports[self._name]
        self._peers.clear()
