"""How KV pages move between workers: one-sided writes of whole pages, ended by a notice to the receiver."""

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
        """What a peer needs to `connect` to us."""
        ...

    def connect(self, peer: Endpoint) -> None:
        """Prepare descriptors for every page of the peer; a repeat for the same agent name replaces them.

        Raises `HandoffFailed` when its pages are not laid out like ours or the peer cannot be reached.
        """
        ...

    def disconnect(self, agent: str) -> None:
        """Forget a peer; `poll` reports our unfinished writes to it as failed, though they may still arrive while both
        processes live. It may be connected again under the same name."""
        ...

    def write(self, agent: str, source_pages: Sequence[int], target_pages: Sequence[int], notice: bytes | None) -> int:
        """Start copying our pages onto the peer's, pairwise; returns the transfer's id.

        The pages are read at once, outside every stream of a device: the steps that wrote them must be collected.

        `notice` (given with the last write of a handoff) is delivered to the peer after the pages of this write;
        with no pages it travels alone. The caller waits for its earlier writes before it sends the notice.
        """
        ...

    def progress(self) -> None:
        """Progress transfers, and keep events for `poll`."""
        ...

    def poll(self) -> list[TransferEvent]:
        """Progress transfers, and return the events since the last call, without waiting."""
        ...

    @property
    def in_flight(self) -> int:
        """Our unfinished writes, and events kept for `poll`."""
        ...

    def close(self) -> None:
        """Deregister memory and drop every peer."""
        ...
