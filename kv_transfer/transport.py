"""The interface for moving KV pages between workers: one-sided writes of pages, then a notice to the receiver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from baton.protocol.errors import HandoffFailed
from baton.protocol.worker import Endpoint, PageLayout


@dataclass(frozen=True, slots=True)
class WriteDone:
    """Our write reached the peer's memory: the source pages may change again."""

    transfer_id: int
    num_bytes: int  # Of this rank's heads, over all ranks of the peer
    seconds: float


@dataclass(frozen=True, slots=True)
class WriteFailed:
    """Our write will never complete and no longer reads our pages; `reason` is one sentence."""

    transfer_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A peer sent this payload: every page that it wrote before has arrived. `agent` is the peer's."""

    agent: str
    payload: bytes


TransferEvent = WriteDone | WriteFailed | Notice


def rank_agent(agent: str, rank: int) -> str:
    """The page network's name of one rank of a worker."""
    return f"{agent}/{rank}" if rank else agent


def check_write(
    own: PageLayout,
    num_ranks: int,
    peer: Endpoint,
    source_pages: Sequence[int],
    target_pages: Sequence[int],
    notice: bool,
) -> None:
    """Raise `HandoffFailed` when page ids are invalid, or a notice would travel with one of several ranks' writes."""
    if notice and (num_ranks > 1 or len(peer.ranks) > 1):
        raise HandoffFailed(
            f"A write from {num_ranks} to {len(peer.ranks)} ranks carries no notice: send it after every write."
        )
    if len(source_pages) != len(target_pages):
        raise HandoffFailed(f"{len(source_pages)} pages cannot be written to {len(target_pages)}.")
    for pages, layout in ((source_pages, own), (target_pages, peer.layout)):
        if pages and not (min(pages) >= 0 and max(pages) < layout.num_pages):
            raise HandoffFailed(f"A page id is outside 0 to {layout.num_pages - 1}.")


def check_layouts(own: PageLayout, peer: Endpoint, agent: str) -> None:
    """Raise `HandoffFailed` when the pages of `peer` are not laid out like those of `agent`, which are `own`."""
    if peer.layout.fingerprint != own.fingerprint:
        raise HandoffFailed(
            f"{peer.agent} has pages {peer.layout.fingerprint}, {agent} has {own.fingerprint}: "
            "serve the same model, dtype and page size on both."
        )


class Transport(Protocol):
    """One rank's end of the page network; a worker of one rank has one. Not thread-safe: the rank's loop owns it.

    A page holds the KV heads that `baton.protocol.head_slices` gives the rank. Both workers may have any number of
    ranks. A peer is all ranks of one worker, under the name of its endpoint.

    No method waits for a peer. `write` starts a transfer and returns; `poll` reports exactly one `WriteDone` or
    `WriteFailed` per write.
    """

    @property
    def endpoint(self) -> Endpoint:
        """The data that a peer needs to `connect` to this rank; `ranks` has its address only."""
        ...

    def connect(self, peer: Endpoint) -> None:
        """Prepare descriptors for the pages of each rank of the peer that shares heads with this one.

        A repeat for the same agent name replaces them. Raises `HandoffFailed` when the peer's pages are not laid out
        like ours or one of its ranks cannot be reached; then none is connected.
        """
        ...

    def disconnect(self, agent: str) -> None:
        """Drop every rank of a peer, which may connect again under the same name.

        `poll` reports our unfinished writes to it as failed, but they may still arrive while both processes live.
        """
        ...

    def write(self, agent: str, source_pages: Sequence[int], target_pages: Sequence[int], notice: bytes | None) -> int:
        """Start copying this rank's part of our pages onto the peer's, pairwise; returns the transfer's id.

        The pages are read immediately and outside the device's streams, so the steps that wrote them must have been
        collected. The write ends when the parts for all ranks of the peer have ended, and fails if one of them does.

        `notice`, given with the last write of a handoff between workers of one rank each, is delivered to the peer
        after the pages of this write, or alone if there are none. The caller waits for its earlier writes before it
        sends the notice. Raises `HandoffFailed` when the peer is not connected, page ids are invalid, or the write
        cannot be started.
        """
        ...

    def notify(self, agent: str, notice: bytes) -> None:
        """Send a notice from our rank 0 to the peer's; the caller waits for the writes of all our ranks before.

        Raises `HandoffFailed` when the peer is not connected or the notice cannot be sent.
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
