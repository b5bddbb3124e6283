"""Moves KV pages over NIXL (UCX: NVLink or RDMA on GPU hosts, shared memory or TCP elsewhere).

Memory is registered once. Each peer gets one prepared list of descriptors, one per page, so a write is two lists of
indices. NIXL's own progress thread is off, because it polls without pause and takes a whole core (measured: 98 %). The
worker's loop makes progress by `poll` instead. Over shared memory the copy is done in `write`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch

from baton.kv_transfer.nixl_library import load_nixl, registration_error
from baton.kv_transfer.transport import Notice, TransferEvent, WriteDone, WriteFailed
from baton.protocol.errors import HandoffFailed
from baton.protocol.worker import Endpoint, PageLayout, RankAddress

_HELLO = b""  # Greeting that connects the peers before the first request.
_HANDSHAKE_S = 5.0


@dataclass(slots=True, eq=False)
class _Peer:
    endpoint: Endpoint
    pages: Any  # Prepared descriptor list.
    greeted_s: float
    answered: bool = False


@dataclass(slots=True, eq=False)
class _Write:
    agent: str
    handle: Any
    num_bytes: int
    started_s: float


class NixlTransport:
    """`Transport` for page storage `pages` of the given layout; `agent` is its name for peers.

    `device_id` is the ordinal of the pages' GPU in this process, 0 for host memory. Raises `ConfigError` when NIXL
    cannot register the pages.
    """

    def __init__(self, pages: torch.Tensor, layout: PageLayout, agent: str, device_id: int = 0) -> None:
        self._memory = "VRAM" if pages.is_cuda else "DRAM"
        self._pages = pages
        self._layout = layout
        self._name = agent
        self._device_id = device_id
        self._use_device()
        nixl = load_nixl(pages.is_cuda)
        self._agent = nixl.nixl_agent(agent, nixl.nixl_agent_config(enable_prog_thread=False))
        num_bytes = layout.num_pages * layout.page_bytes
        try:
            self._registered = self._agent.register_memory([(pages.data_ptr(), num_bytes, device_id, "")], self._memory)
        except Exception as error:  # NIXL's errors share no base class
            raise registration_error(_reason(error), pages.is_cuda, num_bytes, nixl) from None
        self._own_pages = self._prepare("NIXL_INIT_AGENT", pages.data_ptr(), device_id, layout)
        self._metadata = self._agent.get_agent_metadata()
        self._peers: dict[str, _Peer] = {}
        self._writes: dict[int, _Write] = {}
        self._events: list[TransferEvent] = []
        self._ids = count()

    def _prepare(self, agent: str, base_address: int, device_id: int, layout: PageLayout) -> Any:
        """A prepared list with a descriptor for every page."""
        descriptors = np.empty((layout.num_pages, 3), dtype=np.uint64)
        descriptors[:, 0] = np.uint64(base_address) + np.arange(layout.num_pages, dtype=np.uint64) * layout.page_bytes
        descriptors[:, 1] = layout.page_bytes
        descriptors[:, 2] = device_id
        return self._agent.prep_xfer_dlist(agent, descriptors, self._memory)

    def _use_device(self) -> None:
        """Make the pages' GPU the calling thread's; slow calls come from another thread than writes."""
        if self._pages.device.type == "cuda":
            torch.cuda.set_device(self._pages.device)

    @property
    def endpoint(self) -> Endpoint:
        rank = RankAddress(self._metadata, self._pages.data_ptr(), self._device_id, os.getpid())
        return Endpoint(self._name, self._layout, (rank,))

    @property
    def in_flight(self) -> int:
        """Number of unfinished writes, of events kept for `poll`, and of peers that have not yet sent a greeting."""
        now = time.monotonic()
        greeting = sum(1 for peer in self._peers.values() if not peer.answered and now - peer.greeted_s < _HANDSHAKE_S)
        return len(self._writes) + len(self._events) + greeting

    def connect(self, peer: Endpoint) -> None:
        if peer.layout.fingerprint != self._layout.fingerprint:
            raise HandoffFailed(
                f"{peer.agent} has pages {peer.layout.fingerprint}, {self._name} has {self._layout.fingerprint}: "
                "serve the same model, dtype and page size on both."
            )
        self._use_device()
        self.disconnect(peer.agent)
        rank = peer.ranks[0]
        try:
            self._agent.add_remote_agent(rank.metadata)
            pages = self._prepare(peer.agent, rank.base_address, rank.device_id, peer.layout)
            self._agent.send_notif(peer.agent, _HELLO)
        except Exception as error:
            raise HandoffFailed(f"{peer.agent} cannot be reached: {_reason(error)}.") from None
        self._peers[peer.agent] = _Peer(peer, pages, time.monotonic())

    def disconnect(self, agent: str) -> None:
        peer = self._peers.pop(agent, None)
        if peer is None:
            return
        for transfer_id, write in list(self._writes.items()):
            if write.agent == agent:
                self._end(transfer_id, f"{agent} was disconnected")
        peer.pages.release()
        try:
            self._agent.remove_remote_agent(agent)
        except Exception as error:
            if "NOT_FOUND" not in str(error):
                raise HandoffFailed(f"{agent} could not be removed: {_reason(error)}.") from None

    def write(self, agent: str, source_pages: Sequence[int], target_pages: Sequence[int], notice: bytes | None) -> int:
        peer = self._peers.get(agent)
        if peer is None:
            raise HandoffFailed(f"{agent} is not connected.")
        self._check(source_pages, target_pages, peer.endpoint.layout)
        transfer_id, started_s = next(self._ids), time.perf_counter()
        if not source_pages:
            return self._notify(transfer_id, agent, notice, started_s)
        try:
            handle = self._agent.make_prepped_xfer(
                "WRITE",
                self._own_pages,
                np.array(source_pages, dtype=np.int32),
                peer.pages,
                np.array(target_pages, dtype=np.int32),
                notice or b"",
            )
        except Exception as error:
            raise HandoffFailed(f"A write to {agent} could not be prepared: {_reason(error)}.") from None
        self._writes[transfer_id] = _Write(agent, handle, len(source_pages) * self._layout.page_bytes, started_s)
        self._advance(transfer_id, start=True)
        return transfer_id

    def _check(self, source_pages: Sequence[int], target_pages: Sequence[int], target: PageLayout) -> None:
        if len(source_pages) != len(target_pages):
            raise HandoffFailed(f"{len(source_pages)} pages cannot be written to {len(target_pages)}.")
        for pages, layout in ((source_pages, self._layout), (target_pages, target)):
            if pages and not (min(pages) >= 0 and max(pages) < layout.num_pages):
                raise HandoffFailed(f"A page id is outside 0 to {layout.num_pages - 1}.")

    def _notify(self, transfer_id: int, agent: str, notice: bytes | None, started_s: float) -> int:
        if notice is not None:
            try:
                self._agent.send_notif(agent, notice)
            except Exception as error:
                raise HandoffFailed(f"{agent} could not be notified: {_reason(error)}.") from None
        self._events.append(WriteDone(transfer_id, 0, time.perf_counter() - started_s))
        return transfer_id

    def progress(self) -> None:
        for agent, payloads in self._agent.get_new_notifs().items():
            if agent in self._peers:
                self._peers[agent].answered = True
            self._events += [Notice(agent, payload) for payload in payloads if payload != _HELLO]
        for transfer_id in list(self._writes):
            self._advance(transfer_id)

    def poll(self) -> list[TransferEvent]:
        self.progress()
        events, self._events = self._events, []
        return events

    def _advance(self, transfer_id: int, start: bool = False) -> None:
        write = self._writes[transfer_id]
        try:
            state = self._agent.transfer(write.handle) if start else self._agent.check_xfer_state(write.handle)
        except Exception as error:
            self._end(transfer_id, f"the write to {write.agent} failed: {_reason(error)}")
            return
        if state == "DONE":
            self._end(transfer_id)
        elif state != "PROC":
            self._end(transfer_id, f"the write to {write.agent} failed")

    def _end(self, transfer_id: int, error: str = "") -> None:
        write = self._writes.pop(transfer_id)
        seconds = time.perf_counter() - write.started_s
        with contextlib.suppress(Exception):  # NIXL itself frees a transfer that it is still aborting.
            write.handle.release()
        if error:
            self._events.append(WriteFailed(transfer_id, error))
        else:
            self._events.append(WriteDone(transfer_id, write.num_bytes, seconds))

    def close(self) -> None:
        if self._registered is None:
            return
        for agent in list(self._peers):
            with contextlib.suppress(HandoffFailed):  # The other peers and the memory must still be released.
                self.disconnect(agent)
        self._own_pages.release()
        self._agent.deregister_memory(self._registered)
        self._registered = None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
