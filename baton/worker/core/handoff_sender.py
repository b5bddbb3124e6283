"""The sending side of one handoff: pages sent and in flight, and when the notice may follow.

A prefill worker hands off a prompt this way, a decode worker a migrating sequence that keeps decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from baton.engine.sequence import Sequence
from baton.protocol.handoff import (
    HandoffNotice,
    HandoffOutcome,
    HandoffReport,
    Reservation,
)
from baton.worker.core.page_checksums import sampled
from baton.worker.core.role import WriteEnded, WritePages


@dataclass(slots=True, eq=False)
class HandoffSender:
    """Pushes a sequence's pages into a reservation as they are computed.

    The last pages wait for the earlier writes, because the notice that travels with them promises that everything
    has arrived.

        page table:  [ cached at target | sent, landed or in flight | computed | not computed yet ]
                     0    cached_pages ^                       sent ^
    """

    reservation: Reservation
    sent: int  # pages [cached_pages, sent) were given to the transport
    in_flight: set[int] = field(default_factory=set)
    final_write: int | None = None
    cancelled: bool = False
    error: str = ""
    pages_sent: int = 0
    bytes_sent: int = 0
    transfer_s: float = 0.0

    @classmethod
    def to(cls, reservation: Reservation) -> HandoffSender:
        return cls(reservation, reservation.cached_pages)

    def unsent_pages(self, sequence: Sequence, page_size: int) -> int:
        """Full pages not yet given to the transport."""
        return max(0, sequence.computed // page_size - self.sent)

    def push(
        self,
        sequence: Sequence,
        page_size: int,
        last: bool,
        write_ids: Iterator[int],
        checksum_every: int,
        most_pages: int | None = None,
    ) -> WritePages | None:
        """The next write, if there are pages to send and it is allowed.

        The `last` one carries the notice: the sequence computes no more here. Others send `most_pages` at most.
        """
        if self.cancelled or self.error or self.final_write is not None:
            return None
        if last and self.in_flight:
            return None
        unsent = self.unsent_pages(sequence, page_size)
        until = -(-sequence.computed // page_size) if last else self.sent + min(unsent, most_pages or unsent)
        if not last and until <= self.sent:
            return None
        first, self.sent = self.sent, max(until, self.sent)
        offset = self.reservation.cached_pages
        if self.sent - offset > len(self.reservation.page_ids) or len(sequence.tokens) < self.reservation.known_tokens:
            self.error = "the sequence does not match its reservation any more"
            return None
        write = WritePages(
            write_id=next(write_ids),
            agent=self.reservation.agent,
            source_pages=tuple(sequence.page_table[first : self.sent]),
            target_pages=self.reservation.page_ids[first - offset : self.sent - offset],
            notice=self._notice(sequence) if last else None,
            checksummed=self._checksummed(sequence, checksum_every) if last else (),
        )
        self.pages_sent += len(write.source_pages)
        self.in_flight.add(write.write_id)
        if last:
            self.final_write = write.write_id
        return write

    def _checksummed(self, sequence: Sequence, every: int) -> tuple[tuple[int, int], ...]:
        offset = self.reservation.cached_pages
        places = sampled(self.reservation.reservation_id, self.sent - offset, every)
        return tuple((place, sequence.page_table[place + offset]) for place in places)

    def _notice(self, sequence: Sequence) -> HandoffNotice:
        return HandoffNotice(
            reservation_id=self.reservation.reservation_id,
            request_id=sequence.request_id,
            computed=sequence.computed,
            new_tokens=tuple(sequence.tokens[self.reservation.known_tokens :]),
            generations=self.reservation.generations,
        )

    def on_write_ended(self, outcome: WriteEnded) -> None:
        """Account for the end of one of our writes."""
        self.in_flight.discard(outcome.write_id)
        self.transfer_s += outcome.seconds
        if outcome.error:
            self.error = self.error or outcome.error
        else:
            self.bytes_sent += outcome.num_bytes

    @property
    def outcome(self) -> HandoffOutcome | None:
        """How the handoff ended, or None while a write may still read our pages or more is to come."""
        if self.in_flight:
            return None
        if self.error:
            return HandoffOutcome.FAILED
        if self.final_write is not None:
            return HandoffOutcome.DELIVERED
        return HandoffOutcome.DRAINED if self.cancelled else None

    def report(self, compute_ended_s: float | None, now: float) -> HandoffReport:
        """The handoff's cost; `compute_ended_s` is when the sequence computed its last token here."""
        return HandoffReport(
            pages_sent=self.pages_sent,
            pages_cached=self.reservation.cached_pages,
            bytes_sent=self.bytes_sent,
            transfer_s=self.transfer_s,
            exposed_s=now - compute_ended_s if compute_ended_s is not None else 0.0,
        )
