"""The interface for moving KV pages between workers: one-sided writes of whole pages, then a notice to the receiver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from baton.protocol.worker import Endpoint


@dataclass(frozen=True, slots=True)
class WriteDone:
    """Our write reached the peer's memory: the source pages may change again."""

    transfer_id: int
    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class WriteFailed:
    """Our write will never complete and no longer reads our pages; `reason` is one sentence."""

    transfer_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A peer's write ended with this payload: every page written before it with the same peer has arrived."""

    agent: str
    payload: bytes


TransferEvent = WriteDone | WriteFailed | Notice


class Transport(Protocol):
    """One worker's end of the page network. Not thread-safe: the worker's loop owns it.

    No method waits for a peer. `write` starts a transfer and returns; `poll` reports exactly one `WriteDone` or
    `WriteFailed` per write.
    """

    @property
    def endpoint(self) -> Endpoint:
        """The data that a peer needs to `connect` to us."""
        ...

    def connect(self, peer: Endpoint) -> None:
        """Prepare descriptors for every page of the peer; a repeat for the same agent name replaces them.

        Raises `HandoffFailed` when its pages are not laid out like ours or the peer cannot be reached.
        """
        ...

    def disconnect(self, agent: str) -> None:
        """Drop a peer, which may connect again under the same name.

        `poll` reports our unfinished writes to it as failed, but they may still arrive while both processes live.
        """
        ...

    def write(self, agent: str, source_pages: Sequence[int], target_pages: Sequence[int], notice: bytes | None) -> int:
        """Start copying our pages onto the peer's, pairwise; returns the transfer's id.

        The pages are read immediately and outside the device's streams, so the steps that wrote them must have been
        collected.

        `notice`, given with the last write of a handoff, is delivered to the peer after the pages of this write, or
        alone if there are none. The caller waits for its earlier writes before it sends the notice. Raises
        `HandoffFailed` when the peer is not connected, page ids are invalid, or the write cannot be started.
        """
        ...

    def progress(self) -> None:
        """Advance transfers, and keep events for `poll`."""
        ...

    def poll(self) -> list[TransferEvent]:
        """Advance transfers, and return the events since the last call, without waiting."""
        ...

    @property
    def in_flight(self) -> int:
        """Number of our unfinished writes, and of events kept for `poll`."""
        ...

    def close(self) -> None:
        """Deregister memory and drop every peer."""
        ...
