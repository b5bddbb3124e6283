"""The source of handoffs: sends the pages of sequences to workers that hold pages for them. Pure; each role owns one.

    sending ──every page and the notice have arrived, or a write failed──────────────► ended
       │ the sequence has ended or was cancelled, or its peer is stalled                 ▲
       └──► detached: it shares the pages that its writes may read ──its last write ends──┘

A prefill worker sends pages as a prompt's chunks are computed. A decode worker migrates a sequence that keeps decoding:
its full pages travel first, then it pauses for one write of its last page and the notice.

A write to a peer that cannot be reached lasts as long as the cable is cut. Nothing recalls it: what is queued arrives
when the cable is whole again, also after both sides have disconnected. So a stalled handoff holds its pages until its
last write has ended, as its target does, but no request waits for it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from baton.engine.kv_pages import PagePool
from baton.engine.sequence import Sequence
from baton.protocol.handoff import HandoffNotice, HandoffOutcome, HandoffReport, Reservation
from baton.protocol.messages import HandoffEnded, HandoffStalled, SendPages
from baton.worker.core.page_checksums import sampled
from baton.worker.core.role import Command, Send, WriteEnded, WritePages

PAGES_PER_WRITE = 64  # of a migration: a transport that copies inside the call must not delay the others' step


@dataclass(slots=True, eq=False)
class _Handoff:
    """
    page table:  [ cached at target | sent, landed or in flight | computed | not computed yet ]
                 0    cached_pages ^                       sent ^
    """

    sequence: Sequence
    reservation: Reservation
    computed_s: float | None  # when the sequence computed its last token here
    sent: int  # pages [cached_pages, sent) were given to the transport
    in_flight: set[int] = field(default_factory=set)
    notified: bool = False  # the write with the notice was ordered
    cancelled: bool = False
    stalled: bool = False
    outgrown: bool = False  # the reservation is too small by now; the link is not to blame
    error: str = ""
    held: tuple[int, ...] | None = None  # the shared pages of a detached handoff
    pages_sent: int = 0
    bytes_sent: int = 0
    transfer_s: float = 0.0

    @property
    def outcome(self) -> HandoffOutcome | None:
        """How it ended, or None while a write may still read our pages or more is to come."""
        if self.in_flight:
            return None
        if self.error:
            return HandoffOutcome.DRAINED if self.outgrown else HandoffOutcome.FAILED
        if self.notified and not self.stalled:  # the target of a stalled one was ordered to commit nothing
            return HandoffOutcome.DELIVERED
        return HandoffOutcome.DRAINED if self.cancelled else None

    def ended(self, outcome: HandoffOutcome, now: float) -> HandoffEnded:
        exposed_s = now - self.computed_s if self.computed_s is not None else 0.0
        report = HandoffReport(
            self.pages_sent, self.reservation.cached_pages, self.bytes_sent, self.transfer_s, exposed_s
        )
        return HandoffEnded(self.sequence.request_id, self.reservation.reservation_id, outcome, report, self.error)


@dataclass(eq=False)
class HandoffSource:
    """At most one handoff of a sequence is sending. `migrates`: sequences keep decoding until their last page."""

    pool: PagePool
    checksum_every: int
    migrates: bool
    _sending: dict[str, _Handoff] = field(default_factory=dict)  # by request
    _detached: dict[str, _Handoff] = field(default_factory=dict)  # by reservation; each has a write in flight
    _of_write: dict[int, _Handoff] = field(default_factory=dict)
    _write_ids: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def detached_ids(self) -> tuple[str, ...]:
        """Requests whose pages a write still reads, though their sequence has ended or continues here."""
        return tuple(handoff.sequence.request_id for handoff in self._detached.values())

    def sending(self, request_id: str) -> bool:
        """Whether a write may be reading the sequence's pages, so that it may not be preempted."""
        return request_id in self._sending

    def paused(self, request_id: str) -> bool:
        """Whether the sequence computes no more here unless its handoff fails."""
        handoff = self._sending.get(request_id)
        return handoff is not None and handoff.computed_s is not None

    def start(self, order: SendPages, sequence: Sequence | None, computed_s: float | None = None) -> list[Command]:
        """Start to send a sequence that is held here with its pages; `push` sends the first ones.

        A repeated order is answered by the end of its handoff, one that cannot be obeyed at once.
        """
        reservation = order.reservation
        if any(one.reservation == reservation for one in (*self._sending.values(), *self._detached.values())):
            return []
        if sequence is None or self.sending(order.request_id):
            return [Send(HandoffEnded(order.request_id, reservation.reservation_id, HandoffOutcome.DRAINED))]
        self._sending[order.request_id] = _Handoff(sequence, reservation, computed_s, reservation.cached_pages)
        return []

    def on_computed(self, request_id: str, now: float) -> None:
        """The sequence has computed its last token here: its remaining pages go out with the notice."""
        if self.sending(request_id):
            self._sending[request_id].computed_s = now

    def push(self, now: float) -> list[Command]:
        """Send pages that are computed but not sent. A migrating sequence pauses here, so that no step may be running.

        A running chunk never changes full pages.
        """
        commands: list[Command] = []
        for handoff in list(self._sending.values()):
            write = self._next_write(handoff, now)
            commands += [write] if write is not None else self._settle(handoff, now)
        return commands

    def _next_write(self, handoff: _Handoff, now: float) -> WritePages | None:
        """The last write waits for the earlier ones, because its notice promises that everything has arrived."""
        sequence = handoff.sequence
        if handoff.cancelled or handoff.error or handoff.notified:
            return None
        full = sequence.computed // self.pool.page_size
        if self.migrates:
            if handoff.in_flight or not sequence.decoding:
                return None
            last = full <= handoff.sent
            full = min(full, handoff.sent + PAGES_PER_WRITE)
        else:
            last = handoff.computed_s is not None
        if handoff.in_flight if last else full <= handoff.sent:
            return None
        write = self._write(handoff, -(-sequence.computed // self.pool.page_size) if last else full, last)
        if write is not None and last and self.migrates:
            handoff.computed_s = now
        return write

    def _write(self, handoff: _Handoff, until: int, last: bool) -> WritePages | None:
        sequence, reservation = handoff.sequence, handoff.reservation
        first, handoff.sent = handoff.sent, max(until, handoff.sent)
        offset = reservation.cached_pages
        places = handoff.sent - offset
        if places > len(reservation.page_ids) or len(sequence.tokens) < reservation.known_tokens:
            handoff.outgrown, handoff.error = True, "the sequence does not match its reservation any more"
            return None
        checked = sampled(reservation.reservation_id, places, self.checksum_every) if last else ()
        write = WritePages(
            write_id=next(self._write_ids),
            agent=reservation.agent,
            source_pages=tuple(sequence.page_table[first : handoff.sent]),
            target_pages=reservation.page_ids[first - offset : places],
            notice=_notice(handoff) if last else None,
            checksummed=tuple((place, sequence.page_table[place + offset]) for place in checked),
        )
        handoff.pages_sent += len(write.source_pages)
        handoff.in_flight.add(write.write_id)
        handoff.notified = last
        self._of_write[write.write_id] = handoff
        return write

    def on_write_ended(self, outcome: WriteEnded, now: float) -> tuple[list[Command], Sequence | None]:
        """Account for a write; returns the sequence too if it has arrived at its target and must be removed here."""
        handoff = self._of_write.pop(outcome.write_id)
        handoff.in_flight.discard(outcome.write_id)
        handoff.transfer_s += outcome.seconds
        if outcome.error:
            handoff.error = handoff.error or outcome.error
        else:
            handoff.bytes_sent += outcome.num_bytes
        arrived = handoff.outcome is HandoffOutcome.DELIVERED and handoff.held is None
        return self._settle(handoff, now), handoff.sequence if arrived else None

    def on_stalled(self, agent: str, now: float) -> list[Command]:
        """Our writes to the peer are stalled: nothing waits for them any more, and migrating sequences continue."""
        commands: list[Command] = []
        for handoff in [*self._sending.values(), *self._detached.values()]:
            if handoff.reservation.agent != agent or handoff.stalled:
                continue
            if not handoff.in_flight:
                handoff.error = f"{agent} takes no pages"
                commands += self._settle(handoff, now)
                continue
            handoff.stalled, handoff.computed_s = True, now
            self._detach(handoff)
            ids = handoff.sequence.request_id, handoff.reservation.reservation_id
            commands.append(Send(HandoffStalled(*ids)))
        return commands

    def release(self, request_id: str, now: float) -> list[Command]:
        """The sequence has ended or was cancelled. Its owner releases its pages; those that writes read stay shared."""
        handoff = self._sending.get(request_id)
        if handoff is None:
            return []
        self._detach(handoff)
        return self._settle(handoff, now)

    def call_off(self) -> None:
        """Start no more writes; those in flight end."""
        for handoff in self._sending.values():
            handoff.cancelled = True

    def _detach(self, handoff: _Handoff) -> None:
        if handoff.held is None:
            del self._sending[handoff.sequence.request_id]
            self._detached[handoff.reservation.reservation_id] = handoff
            handoff.cancelled = True
            handoff.held = tuple(handoff.sequence.page_table[: handoff.sent])
            self.pool.share(handoff.held)

    def _settle(self, handoff: _Handoff, now: float) -> list[Command]:
        """Report an ended handoff, once, and release the pages that it shares."""
        outcome = handoff.outcome
        if outcome is None:
            return []
        if handoff.held is None:
            del self._sending[handoff.sequence.request_id]
        else:
            del self._detached[handoff.reservation.reservation_id]
            self.pool.release(handoff.held)
        return [Send(handoff.ended(outcome, now))]


def _notice(handoff: _Handoff) -> HandoffNotice:
    sequence, reservation = handoff.sequence, handoff.reservation
    return HandoffNotice(
        reservation_id=reservation.reservation_id,
        request_id=sequence.request_id,
        computed=sequence.computed,
        new_tokens=tuple(sequence.tokens[reservation.known_tokens :]),
        generations=reservation.generations,
    )
