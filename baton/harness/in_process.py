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

from baton.kv_transfer.transport import (
    Notice,
    TransferEvent,
    WriteDone,
    WriteFailed,
    check_layouts,
    check_write,
    rank_agent,
)
from baton.protocol.errors import HandoffFailed
from baton.protocol.head_slices import Piece, partners, pieces
from baton.protocol.worker import Endpoint, PageLayout


@dataclass(eq=False)
class InProcessNetwork:
    """A set of transports, by `rank_agent`, that can reach each other. Writes to agents in `unreachable` fail."""

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
    """`Transport` for page storage `pages` of one rank, with peers in `network`. `layout` is the whole worker's."""

    def __init__(
        self,
        network: InProcessNetwork,
        pages: torch.Tensor,
        layout: PageLayout,
        agent: str,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.pages = pages
        self.notices: deque[Notice] = deque()
        self._network = network
        self._layout = layout
        self._name = agent
        self._rank = rank
        self._num_ranks = num_ranks
        self._peers: dict[str, Endpoint] = {}
        self._writes: list[_Write] = []
        self._ended: list[TransferEvent] = []
        self._ids = count()
        network.transports[rank_agent(agent, rank)] = self

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self._name, self._layout)

    @property
    def in_flight(self) -> int:
        return len(self._writes) + len(self._ended)

    def connect(self, peer: Endpoint) -> None:
        check_layouts(self._layout, peer, self._name)
        self.disconnect(peer.agent)
        for rank in partners(self._layout.num_kv_heads, self._num_ranks, self._rank, len(peer.ranks)):
            if self._target(peer.agent, rank) is None:
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
        check_write(self._layout, self._num_ranks, peer, source_pages, target_pages, notice is not None)
        transfer_id = next(self._ids)
        self._writes.append(_Write(transfer_id, agent, tuple(source_pages), tuple(target_pages), notice))
        return transfer_id

    def notify(self, agent: str, notice: bytes) -> None:
        if self._rank:
            raise HandoffFailed(f"Rank {self._rank} sends no notices: rank 0 does, when every rank has written.")
        target = self._target(agent, 0)
        if agent not in self._peers or target is None:
            raise HandoffFailed(f"{agent} is not connected.")
        target.notices.append(Notice(self._name, notice))

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
        started_s, num_heads, peer_ranks = time.perf_counter(), 0, len(self._peers[write.agent].ranks)
        for piece in pieces(self._layout.num_kv_heads, self._num_ranks, self._rank, peer_ranks):
            target = self._target(write.agent, piece.target_rank)
            if target is None:
                return WriteFailed(write.transfer_id, f"{write.agent} cannot be reached")
            _copy_piece(self.pages, write.source_pages, target.pages, write.target_pages, piece)
            num_heads += piece.num_heads
        if write.notice is not None:
            self.notify(write.agent, write.notice)
        num_bytes = len(write.source_pages) * num_heads * self._layout.head_bytes
        return WriteDone(write.transfer_id, num_bytes, time.perf_counter() - started_s)

    def _target(self, agent: str, rank: int) -> InProcessTransport | None:
        name = rank_agent(agent, rank)
        return None if name in self._network.unreachable else self._network.transports.get(name)

    def close(self) -> None:
        name = rank_agent(self._name, self._rank)
        if self._network.transports.get(name) is self:
            del self._network.transports[name]
        self._peers.clear()


def _copy_piece(
    source: torch.Tensor, source_pages: Sequence[int], target: torch.Tensor, target_pages: Sequence[int], piece: Piece
) -> None:
    ours = source[:, piece.source_head : piece.source_head + piece.num_heads]
    theirs = target[:, piece.target_head : piece.target_head + piece.num_heads]
    theirs[list(target_pages)] = ours[list(source_pages)]
