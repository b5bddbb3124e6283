"""Live migration: running sequences that move to another decode worker.

    running ──SendPages──► leaving: full pages travel, it keeps decoding ──► paused: last page and notice ──► gone
                              │ the write failed, or the target is gone: it stays and continues here      ◄──┘

The pause is one write of a page or two. A sequence that ends or is cancelled during a migration keeps its pages until
no write reads them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from baton.engine.kv_pages import PagePool
from baton.engine.page_table import give_back_pages
from baton.engine.sequence import Sequence
from baton.protocol.handoff import HandoffOutcome, Reservation
from baton.protocol.messages import HandoffEnded
from baton.worker.core.handoff_sender import HandoffSender
from baton.worker.core.role import Command, Send, WriteEnded
from baton.worker.core.stalled_handoffs import StalledHandoffs

PAGES_PER_WRITE = 64  # a transport that copies inside the call must not delay the other sequences' step


@dataclass(slots=True, eq=False)
class _Departure:
    sequence: Sequence
    sender: HandoffSender
    paused_s: float | None = None


@dataclass(eq=False)
class MigrationSource:
    """The migrating sequences. One may pause only in `on_step_ended`."""

    pool: PagePool
    checksum_every: int
    _leaving: dict[str, _Departure] = field(default_factory=dict)
    _ended: dict[str, _Departure] = field(default_factory=dict)  # by reservation: ended, but a write reads their pages
    _of_write: dict[int, _Departure] = field(default_factory=dict)
    _write_ids: itertools.count[int] = field(default_factory=itertools.count)
    _stalled: StalledHandoffs = field(init=False)

    def __post_init__(self) -> None:
        self._stalled = StalledHandoffs(self.pool)

    def __len__(self) -> int:
        return len(self._leaving) + len(self._ended) + len(self._stalled)

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Those whose pages are still read though their sequence has ended, or continues here."""
        ended = (departure.sequence.request_id for departure in self._ended.values())
        return (*ended, *self._stalled.request_ids)

    def under_way(self, reservation: Reservation) -> bool:
        """Whether a sequence is migrating into it, so that its end will be reported."""
        departures = (*self._leaving.values(), *self._ended.values())
        return any(departure.sender.reservation == reservation for departure in departures)

    def leaving(self, request_id: str) -> bool:
        """Whether it may not be preempted: a write may be reading its pages."""
        return request_id in self._leaving

    def paused(self, request_id: str) -> bool:
        departure = self._leaving.get(request_id)
        return departure is not None and departure.paused_s is not None

    def start(self, sequence: Sequence, reservation: Reservation) -> None:
        """Start to migrate a running sequence; `on_step_ended` sends the first pages."""
        self._leaving[sequence.request_id] = _Departure(sequence, HandoffSender.to(reservation))

    def on_step_ended(self, now: float) -> list[Command]:
        """Send pages while no step changes a sequence."""
        commands: list[Command] = []
        for departure in list(self._leaving.values()):
            commands += self._push(departure, now)
        return commands

    def _push(self, departure: _Departure, now: float) -> list[Command]:
        sender, sequence, page_size = departure.sender, departure.sequence, self.pool.page_size
        if sender.in_flight or not sequence.decoding:
            return []
        last = sender.unsent_pages(sequence, page_size) == 0
        write = sender.push(sequence, page_size, last, self._write_ids, self.checksum_every, PAGES_PER_WRITE)
        if write is None:
            return self._settle(departure, now)
        if last:
            departure.paused_s = now
        self._of_write[write.write_id] = departure
        return [write]

    def on_write_ended(self, outcome: WriteEnded, now: float) -> tuple[list[Command], Sequence | None]:
        """Account for a write; returns the sequence too if it has arrived at its target and must be removed here."""
        of_stalled = self._stalled.on_write_ended(outcome, now)
        if of_stalled is not None:
            return of_stalled, None
        departure = self._of_write.pop(outcome.write_id)
        departure.sender.on_write_ended(outcome)
        delivered = departure.sender.outcome is HandoffOutcome.DELIVERED
        here = self._leaving.get(departure.sequence.request_id) is departure
        gone = departure.sequence if delivered and here else None
        return self._settle(departure, now), gone

    def on_stalled(self, agent: str, now: float) -> list[Command]:
        """Our writes to the peer are stalled: sequences migrating there stay, and continue at once."""
        commands: list[Command] = []
        for departure in [*self._leaving.values(), *self._ended.values()]:
            sender = departure.sender
            if sender.reservation.agent != agent:
                continue
            if not sender.in_flight:
                sender.error = f"{agent} takes no pages"
                commands += self._settle(departure, now)
                continue
            for write_id in sender.in_flight:
                del self._of_write[write_id]
            commands.append(self._stalled.hold(departure.sequence, sender, now))
            if self._ended.pop(sender.reservation.reservation_id, None) is not None:
                give_back_pages(departure.sequence, self.pool)
            else:
                del self._leaving[departure.sequence.request_id]
        return commands

    def drop(self, sequence: Sequence, now: float) -> tuple[list[Command], bool]:
        """The sequence has ended or was cancelled. True: its pages are kept until no write reads them."""
        departure = self._leaving.pop(sequence.request_id, None)
        if departure is None:
            return [], False
        departure.sender.cancelled = True
        self._ended[departure.sender.reservation.reservation_id] = departure
        return self._settle(departure, now), True

    def call_off(self) -> None:
        """Start no more writes."""
        for departure in self._leaving.values():
            departure.sender.cancelled = True

    def give_up(self) -> None:
        """No write is in flight: sequences that have not left stay, and pages kept for writes are freed."""
        for departure in self._ended.values():
            give_back_pages(departure.sequence, self.pool)
        self._leaving.clear()
        self._ended.clear()

    def _settle(self, departure: _Departure, now: float) -> list[Command]:
        """Report an ended migration, once, and free the pages kept for it."""
        sender, request_id = departure.sender, departure.sequence.request_id
        reservation_id = sender.reservation.reservation_id
        outcome = sender.outcome
        if outcome is None:
            return []
        if self._ended.pop(reservation_id, None) is not None:
            give_back_pages(departure.sequence, self.pool)
        else:
            del self._leaving[request_id]
        report = sender.report(departure.paused_s, now)
        return [Send(HandoffEnded(request_id, reservation_id, outcome, report, sender.error))]
