"""The handoff of a request's KV pages from a source (prefill, or decode in a migration) to a target (decode) worker.

    REQUESTED ──reserved──► RESERVED ──first write──► TRANSFERRING ──final write──► DELIVERED ──notice──► COMMITTED
        │                      │                          │   └──notice, before the source's answer──► ARRIVED ──┘
        └──── refused ─────────┴── cancel, no write ──────┴──► ABORTED ◄── writes drained or failed, source dead

| state        | source pages            | target pages                                                    |
| ------------ | ----------------------- | --------------------------------------------------------------- |
| REQUESTED    | held by the source      | none yet                                                        |
| RESERVED     | held by the source      | held for the reservation, no writes                             |
| TRANSFERRING | held until writes end   | held: a write may land at any time                              |
| DELIVERED    | released by the source  | held for the sequence whose notice is in flight                 |
| ARRIVED      | held until it answers   | the running sequence's                                          |
| COMMITTED    | released                | the running sequence's                                          |
| ABORTED      | released after draining | released once the source has drained or its process has ended   |

The router advances a handoff by what its two workers report; the target begins at RESERVED. A stalled handoff is
TRANSFERRING until its writes have ended, even if its request no longer waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from baton.protocol.bounds import Count, Id, Seconds
from baton.protocol.errors import InternalError


class HandoffState(Enum):
    """The states of the diagram above."""

    REQUESTED = "requested"
    RESERVED = "reserved"
    TRANSFERRING = "transferring"
    DELIVERED = "delivered"
    ARRIVED = "arrived"
    COMMITTED = "committed"
    ABORTED = "aborted"


class HandoffStep(Enum):
    """The transitions of the diagram above."""

    GRANT = "grant"
    WRITE = "write"
    DELIVER = "deliver"
    COMMIT = "commit"
    ABORT = "abort"


_EDGES: dict[tuple[HandoffState, HandoffStep], HandoffState] = {
    (HandoffState.REQUESTED, HandoffStep.GRANT): HandoffState.RESERVED,
    (HandoffState.REQUESTED, HandoffStep.ABORT): HandoffState.ABORTED,
    (HandoffState.RESERVED, HandoffStep.WRITE): HandoffState.TRANSFERRING,
    (HandoffState.RESERVED, HandoffStep.ABORT): HandoffState.ABORTED,
    (HandoffState.TRANSFERRING, HandoffStep.WRITE): HandoffState.TRANSFERRING,
    (HandoffState.TRANSFERRING, HandoffStep.DELIVER): HandoffState.DELIVERED,
    (HandoffState.TRANSFERRING, HandoffStep.ABORT): HandoffState.ABORTED,
    (HandoffState.TRANSFERRING, HandoffStep.COMMIT): HandoffState.ARRIVED,
    (HandoffState.ARRIVED, HandoffStep.DELIVER): HandoffState.COMMITTED,
    (HandoffState.ARRIVED, HandoffStep.ABORT): HandoffState.ABORTED,
    (HandoffState.DELIVERED, HandoffStep.COMMIT): HandoffState.COMMITTED,
}


def advance(state: HandoffState, step: HandoffStep) -> HandoffState:
    """The state after `step`; raises `InternalError` for a step that the table does not have."""
    after = _EDGES.get((state, step))
    if after is None:
        raise InternalError(f"A handoff that is {state.value} cannot {step.value}.")
    return after


class HandoffOutcome(Enum):
    """How the source's part ended: the answer to each `SendPages`."""

    DELIVERED = "delivered"  # Every page and the notice are at the target
    FAILED = "failed"  # A write failed; no write is in flight, and the source still holds its pages
    DRAINED = "drained"  # Cancelled, or outgrown by the sequence; no write is in flight


@dataclass(frozen=True, slots=True)
class Reservation:
    """Pages that a target worker holds for one request's KV.

    `page_ids` are the pages to write, in the order of the sequence. They follow the first `cached_pages` pages of the
    sequence, which the target has in its prefix cache. `generations` has one entry per page id.
    """

    reservation_id: Id
    request_id: Id
    agent: Id
    page_ids: tuple[int, ...]
    generations: tuple[Count, ...]
    cached_pages: Count
    known_tokens: Count  # Leading tokens of the sequence that the target has from the router


@dataclass(frozen=True, slots=True)
class PageChecksum:
    """Checksum of one page of a reservation, as the source has it: CRC-32 over the CRC-32s of its KV heads in order."""

    place: int  # Index in the reservation's `page_ids`
    crc32: int


@dataclass(frozen=True, slots=True)
class HandoffNotice:
    """The state that travels with the final write; with the request it makes up the whole sequence."""

    reservation_id: Id
    request_id: Id
    computed: Count  # Positions whose KV is in the pages
    new_tokens: tuple[int, ...]  # Tokens after the reservation's `known_tokens`
    generations: tuple[int, ...]
    checksums: tuple[PageChecksum, ...] = ()  # Of a sample of the pages


@dataclass(frozen=True, slots=True)
class HandoffReport:
    """The cost of a handoff."""

    pages_sent: Count = 0
    pages_cached: Count = 0  # Already cached at the target
    bytes_sent: Count = 0
    transfer_s: Seconds = 0.0  # Sum over its writes
    exposed_s: Seconds = 0.0  # From the end of prefill compute to the final write's completion
