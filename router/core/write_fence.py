"""Write fencing: pages are not reused before every writer into them is known to have ended.

A worker that timed out may be dead or only stopped; if it resumes, so does its current write. So a reservation that it
was writing into is released only when its process has ended, or it came back under a new incarnation, which it takes
after its writes have ended. And a worker that comes back gets work only when no write into the reservations of its
former incarnation is possible.

A dead writer's kernel still delivers what it had buffered (4 MB a connection, measured) once the network is back. So if
a write was stalled, or its target away, when its writer died, the pages are held until the kernel gives up.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from baton.router.core.commands import SendToWorker

# Linux gives up 8 retries (tcp_orphan_retries) after 102 s, but looks when it would retry: at most 120 s later.
ORPHAN_S = 240.0


@dataclass(eq=False)
class WriteFence:
    """Every unanswered send order, and the releases that wait for an answer."""

    _sending: dict[str, tuple[str, str]] = field(default_factory=dict)  # reservation id → (source, target)
    _held: dict[str, SendToWorker] = field(default_factory=dict)  # by reservation id
    _stalled: set[str] = field(default_factory=set)  # reservation ids
    _aimless: set[str] = field(default_factory=set)  # reservation ids, whose target's process has ended
    _orphans: dict[str, float] = field(default_factory=dict)  # reservation id, its writer dead → nothing comes after

    def began(self, reservation_id: str, source: str, target: str) -> None:
        """The source was told to write into the target's reservation."""
        self._sending[reservation_id] = (source, target)

    def ended(self, reservation_id: str) -> list[SendToWorker]:
        """The source has answered and writes no more. Returns the releases that may go out now."""
        self._sending.pop(reservation_id, None)
        self._stalled.discard(reservation_id)
        self._aimless.discard(reservation_id)
        self._orphans.pop(reservation_id, None)
        held = self._held.pop(reservation_id, None)
        return [held] if held is not None else []

    def release(self, reservation_id: str, order: SendToWorker) -> list[SendToWorker]:
        """The order, if no write into the reservation is possible; else it is kept until then."""
        if reservation_id not in self._sending:
            return [order]
        self._held[reservation_id] = order
        return []

    def stalled(self, reservation_id: str) -> None:
        """The write is stalled: the rest of it may arrive later."""
        if reservation_id in self._sending:
            self._stalled.add(reservation_id)

    def gone(self, source: str) -> list[SendToWorker]:
        """The worker is alive, and its ordered writes have ended. Returns the releases that may go out now."""
        return [order for reservation_id in self._of(source) for order in self.ended(reservation_id)]

    def died(self, worker: str, present: Container[str], now: float) -> list[SendToWorker]:
        """Its process has ended; `present` are the workers that are not away. Returns the releases that may go out now.

        Writes into its own pages have no target any more.
        """
        self._aimless |= {one for one, (_, target) in self._sending.items() if target == worker}
        over = [one for one in self._orphans if one in self._aimless]
        for one in self._of(worker):
            may_arrive = one in self._stalled or self._sending[one][1] not in present
            if may_arrive and one not in self._aimless:
                self._orphans[one] = now + ORPHAN_S
            else:
                over.append(one)
        return [order for one in over for order in self.ended(one)]

    def expired(self, now: float) -> list[SendToWorker]:
        """Releases due because a dead writer's data can no longer arrive."""
        over = [reservation_id for reservation_id, until_s in self._orphans.items() if now >= until_s]
        return [order for reservation_id in over for order in self.ended(reservation_id)]

    def _of(self, source: str) -> list[str]:
        """Reservations that the worker, which lives or has just died, was told to write into."""
        return [one for one, (writer, _) in self._sending.items() if writer == source and one not in self._orphans]

    def written_into(self, target: str) -> bool:
        """Whether a write into pages that the worker once reserved is still possible."""
        return any(reader == target for _, reader in self._sending.values())

    def target(self, reservation_id: str, source: str) -> str | None:
        """The reservation's worker, if `source` was told to write into it and has not answered."""
        writer, reader = self._sending.get(reservation_id, ("", ""))
        return reader if writer == source else None

    def between(self, one: str, other: str) -> bool:
        """Whether one of the two may still write into pages of the other."""
        return any({writer, reader} == {one, other} for writer, reader in self._sending.values())

    def reads_for(self, source: str, request_id: str) -> bool:
        """Whether a write of the worker may still read pages of the request."""
        sending = ((one.rpartition("/")[0], writer) for one, (writer, _) in self._sending.items())
        return (request_id, source) in sending

    def sending(self) -> dict[str, str]:
        """Every reservation with an unanswered send order, with its writer."""
        return {one: source for one, (source, _) in self._sending.items() if one not in self._orphans}

    def holds(self, reservation_id: str) -> bool:
        """Whether the reservation is kept open because a write into it is still possible."""
        return reservation_id in self._sending

    def __len__(self) -> int:
        return len(self._sending)
