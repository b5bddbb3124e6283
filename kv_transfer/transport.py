"""How KV pages move between workers: one-sided writes of whole pages, ended by a notice to the receiver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from baton.protocol.worker import Endpoint


@dataclass(frozen=True, slots=True)
class WriteDone:
    """A write of ours reached the peer's memory: the source pages may change again."""

    transfer_id: int
    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class WriteFailed:
    """A write of ours will never complete and no longer reads our pages; `reason` is one sentence."""

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

    No method waits for a peer. `write` starts moving and returns; what became of it comes out of `poll`, exactly one
    `WriteDone` or `WriteFailed` per write.
    """

    @property
    def endpoint(self) -> Endpoint:
        """What a peer needs to `connect` to us."""
        ...

    def connect(self, peer: Endpoint) -> None:
        """Prepare descriptors for every page of the peer; again for the same agent name replaces the old ones.

        Raises `HandoffFailed` when its pages are not laid out like ours or the peer cannot be reached.
        """
        ...

    def disconnect(self, agent: str) -> None:
        """Forget a peer; our unfinished writes to it come out of `poll` as failed. They may arrive all the same, for as
        long as both processes live. It may be connected again under the same name."""
        ...

    def write(self, agent: str, source_pages: Sequence[int], target_pages: Sequence[int], notice: bytes | None) -> int:
        """Start copying our pages onto the peer's, pairwise; returns the transfer's id.

        The pages are read at once, beside every stream of a device: the steps that have written them are collected.

        `notice` (given with the last write of a handoff) is delivered to the peer after the pages of this write;
        with no pages it travels alone. The caller waits for its earlier writes before it sends the notice.
        """
        ...

    def progress(self) -> None:
        """Move pages on, and keep what happens for `poll`."""
        ...

    def poll(self) -> list[TransferEvent]:
        """Move pages on, and return what has happened since the last call, without waiting."""
        ...

    @property
    def in_flight(self) -> int:
        """Writes of ours that have not ended yet, and what is kept for `poll`."""
        ...

    def close(self) -> None:
        """Deregister memory and drop every peer."""
        ...
