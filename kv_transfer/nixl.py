"""Moves KV pages over NIXL (UCX: NVLink or RDMA on GPU hosts, shared memory or TCP elsewhere).

Memory is registered once. Each rank of a peer gets one prepared list with a descriptor per page, for the piece of a
page that goes there; between equal numbers of ranks that is the whole page. So a write is two lists of indices per rank
of the peer. NIXL's own progress thread is off, because it polls without pause and takes a whole core (measured: 98 %).
The worker's loop makes progress by `poll` instead. Over shared memory the copy is done in `write`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch

from baton.kv_transfer.nixl_library import load_nixl, registration_error
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
from baton.protocol.head_slices import Piece, heads_of, partners, pieces
from baton.protocol.worker import Endpoint, PageLayout, RankAddress

_HELLO = b""  # Greeting that connects the peers before the first request.
_HANDSHAKE_S = 5.0


@dataclass(slots=True, eq=False)
class _Link:
    """Our connection to one rank of a peer."""

    agent: str
    greeted_s: float = 0.0
    answered: bool = False
    source: Any = None  # Prepared list with our piece of each of our pages; None: we write nothing to this rank
    target: Any = None  # The same of each of the peer's pages
    piece_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Peer:
    endpoint: Endpoint
    links: list[_Link] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Write:
    agent: str
    handles: list[Any]  # Of the transfers that have not ended, one per rank of the peer
    num_bytes: int
    started_s: float
    error: str = ""  # Of the first transfer that failed


class NixlTransport:
    """`Transport` for page storage `pages` of one rank; `agent` is the worker's name for peers.

    `layout` is the whole worker's. `device_id` is the ordinal of the pages' GPU in this process, 0 for host memory.
    Raises `ConfigError` when NIXL cannot register the pages.
    """

    def __init__(
        self,
        pages: torch.Tensor,
        layout: PageLayout,
        agent: str,
        device_id: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self._memory = "VRAM" if pages.is_cuda else "DRAM"
        self._pages = pages
        self._layout = layout
        self._agent_name = agent
        self._device_id = device_id
        self._rank = rank
        self._num_ranks = num_ranks
        self._use_device()
        nixl = load_nixl(pages.is_cuda)
        self._agent = nixl.nixl_agent(rank_agent(agent, rank), nixl.nixl_agent_config(enable_prog_thread=False))
        num_bytes = layout.num_pages * self._num_heads(num_ranks, rank) * layout.head_bytes
        try:
            self._registered = self._agent.register_memory([(pages.data_ptr(), num_bytes, device_id, "")], self._memory)
        except Exception as error:  # NIXL's errors share no base class
            raise registration_error(_reason(error), pages.is_cuda, num_bytes, nixl) from None
        self._address = RankAddress(self._agent.get_agent_metadata(), pages.data_ptr(), device_id, os.getpid())
        self._own_pieces: dict[tuple[int, int], Any] = {}  # Prepared lists by first head and number of heads
        self._peers: dict[str, _Peer] = {}
        self._links: dict[str, _Link] = {}  # By the name of the peer's rank
        self._writes: dict[int, _Write] = {}
        self._events: list[TransferEvent] = []
        self._ids = count()

    def _num_heads(self, num_ranks: int, rank: int) -> int:
        return len(heads_of(self._layout.num_kv_heads, num_ranks, rank))

    def _prepare(self, agent: str, address: RankAddress, num_pages: int, heads: int, first: int, count: int) -> Any:
        """A prepared list: `count` heads from head `first` of each page, at a rank that keeps `heads` heads."""
        head_bytes = self._layout.head_bytes
        descriptors = np.empty((num_pages, 3), dtype=np.uint64)
        offsets = np.arange(num_pages, dtype=np.uint64) * (heads * head_bytes)
        descriptors[:, 0] = np.uint64(address.base_address + first * head_bytes) + offsets
        descriptors[:, 1] = count * head_bytes
        descriptors[:, 2] = address.device_id
        return self._agent.prep_xfer_dlist(agent, descriptors, self._memory)

    def _use_device(self) -> None:
        """Make the pages' GPU the calling thread's; slow calls come from another thread than writes."""
        if self._pages.device.type == "cuda":
            torch.cuda.set_device(self._pages.device)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self._agent_name, self._layout, (self._address,))

    @property
    def in_flight(self) -> int:
        """Number of unfinished writes, of events kept for `poll`, and of ranks that have not yet sent a greeting."""
        now = time.monotonic()
        greeting = sum(1 for link in self._links.values() if not link.answered and now - link.greeted_s < _HANDSHAKE_S)
        return len(self._writes) + len(self._events) + greeting

    def connect(self, peer: Endpoint) -> None:
        check_layouts(self._layout, peer, self._agent_name)
        self._use_device()
        self.disconnect(peer.agent)
        num_heads, num_ranks = self._layout.num_kv_heads, len(peer.ranks)
        ours = {piece.target_rank: piece for piece in pieces(num_heads, self._num_ranks, self._rank, num_ranks)}
        connected = _Peer(peer)
        try:
            for rank in partners(num_heads, self._num_ranks, self._rank, num_ranks):
                self._connect_rank(connected, rank, ours.get(rank))
        except Exception as error:
            with contextlib.suppress(HandoffFailed):  # The first error is the cause.
                self._drop(connected)
            raise HandoffFailed(f"{peer.agent} cannot be reached: {_reason(error)}.") from None
        self._peers[peer.agent] = connected

    def _connect_rank(self, peer: _Peer, rank: int, piece: Piece | None) -> None:
        """Connect one rank of the peer, and prepare the pages for the piece that we write to it."""
        layout, address = peer.endpoint.layout, peer.endpoint.ranks[rank]
        link = _Link(rank_agent(peer.endpoint.agent, rank))
        peer.links.append(link)
        self._agent.add_remote_agent(address.metadata)
        if piece is not None:
            heads, first, count = self._num_heads(len(peer.endpoint.ranks), rank), piece.target_head, piece.num_heads
            link.target = self._prepare(link.agent, address, layout.num_pages, heads, first, count)
            link.source = self._own_piece(piece.source_head, count)
            link.piece_bytes = count * layout.head_bytes
        self._agent.send_notif(link.agent, _HELLO)
        link.greeted_s = time.monotonic()
        self._links[link.agent] = link

    def _own_piece(self, first: int, count: int) -> Any:
        """The prepared list for `count` heads of our pages; it is kept for every peer."""
        if (first, count) not in self._own_pieces:
            heads = self._num_heads(self._num_ranks, self._rank)
            self._own_pieces[first, count] = self._prepare(
                "NIXL_INIT_AGENT", self._address, self._layout.num_pages, heads, first, count
            )
        return self._own_pieces[first, count]

    def disconnect(self, agent: str) -> None:
        peer = self._peers.pop(agent, None)
        if peer is None:
            return
        for transfer_id, write in list(self._writes.items()):
            if write.agent == agent:
                write.error = write.error or f"{agent} was disconnected"
                self._end(transfer_id)
        self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        """Remove every rank of the peer; raises `HandoffFailed` afterwards when NIXL cannot remove one."""
        failed = ""
        for link in peer.links:
            self._links.pop(link.agent, None)
            if link.target is not None:
                link.target.release()
            try:
                self._agent.remove_remote_agent(link.agent)
            except Exception as error:
                if "NOT_FOUND" not in str(error):
                    failed = failed or f"{link.agent} could not be removed: {_reason(error)}."
        if failed:
            raise HandoffFailed(failed)

    def write(self, agent: str, source_pages: Sequence[int], target_pages: Sequence[int], notice: bytes | None) -> int:
        peer = self._peers.get(agent)
        if peer is None:
            raise HandoffFailed(f"{agent} is not connected.")
        check_write(self._layout, self._num_ranks, peer.endpoint, source_pages, target_pages, notice is not None)
        transfer_id, started_s = next(self._ids), time.perf_counter()
        links = [link for link in peer.links if link.source is not None] if source_pages else []
        if not links and notice is not None:
            self.notify(agent, notice)
        write = _Write(agent, [], len(source_pages) * sum(link.piece_bytes for link in links), started_s)
        source, target = np.array(source_pages, dtype=np.int32), np.array(target_pages, dtype=np.int32)
        try:
            for link in links:
                write.handles.append(
                    self._agent.make_prepped_xfer("WRITE", link.source, source, link.target, target, notice or b"")
                )
        except Exception as error:
            _release(write.handles)
            raise HandoffFailed(f"A write to {agent} could not be prepared: {_reason(error)}.") from None
        self._writes[transfer_id] = write
        self._advance(transfer_id, start=True)
        return transfer_id

    def notify(self, agent: str, notice: bytes) -> None:
        if self._rank:
            raise HandoffFailed(f"Rank {self._rank} sends no notices: rank 0 does, when every rank has written.")
        if agent not in self._peers:
            raise HandoffFailed(f"{agent} is not connected.")
        try:
            self._agent.send_notif(rank_agent(agent, 0), notice)
        except Exception as error:
            raise HandoffFailed(f"{agent} could not be notified: {_reason(error)}.") from None

    def progress(self) -> None:
        for agent, payloads in self._agent.get_new_notifs().items():
            if agent in self._links:
                self._links[agent].answered = True
            self._events += [Notice(agent, payload) for payload in payloads if payload != _HELLO]
        for transfer_id in list(self._writes):
            self._advance(transfer_id)

    def poll(self) -> list[TransferEvent]:
        self.progress()
        events, self._events = self._events, []
        return events

    def _advance(self, transfer_id: int, start: bool = False) -> None:
        """Start or check the write's transfers, and end it when they have ended."""
        write = self._writes[transfer_id]
        ended = [handle for handle in write.handles if not self._in_progress(write, handle, start)]
        if len(ended) == len(write.handles):
            self._end(transfer_id)
        elif ended:
            write.handles = [handle for handle in write.handles if handle not in ended]
            _release(ended)

    def _in_progress(self, write: _Write, handle: Any, start: bool) -> bool:
        """Start or check one transfer; the error of one that failed is kept."""
        try:
            state = self._agent.transfer(handle) if start else self._agent.check_xfer_state(handle)
        except Exception as error:
            write.error = write.error or f"the write to {write.agent} failed: {_reason(error)}"
            return False
        if state not in ("DONE", "PROC"):
            write.error = write.error or f"the write to {write.agent} failed"
        return bool(state == "PROC")

    def _end(self, transfer_id: int) -> None:
        write = self._writes.pop(transfer_id)
        seconds = time.perf_counter() - write.started_s
        _release(write.handles)
        if write.error:
            self._events.append(WriteFailed(transfer_id, write.error))
        else:
            self._events.append(WriteDone(transfer_id, write.num_bytes, seconds))

    def close(self) -> None:
        if self._registered is None:
            return
        for agent in list(self._peers):
            with contextlib.suppress(HandoffFailed):  # The other peers and the memory must still be released.
                self.disconnect(agent)
        for prepared in self._own_pieces.values():
            prepared.release()
        self._agent.deregister_memory(self._registered)
        self._registered = None


def _release(handles: Sequence[Any]) -> None:
    for handle in handles:
        with contextlib.suppress(Exception):  # NIXL itself frees a transfer that it is still aborting.
            handle.release()


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
