"""Who may still be writing into whose pages. Pages are not reused before their writer is known to have ended.

A worker that fell silent may be dead, or only stopped: when it goes on, so does the write it was in. So a reservation
that it was sending into is released only when the worker is known to be gone (its process has ended, or it came back
under a new incarnation, which it takes on after its writes have ended). And a worker that comes back is given work only
when nobody writes into what its former incarnation had reserved.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from router.commands import Tell


@dataclass(eq=False)
class Quarantine:
    """Every send order that was not answered yet, and the releases that wait for an answer."""

    _sending: dict[str, tuple[str, str]] = field(default_factory=dict)  # reservation id → (source, target)
    _held: dict[str, Tell] = field(default_factory=dict)  # by reservation id

    def began(self, reservation_id: str, source: str, target: str) -> None:
        """The source was told to write into the target's reservation."""
        self._sending[reservation_id] = (source, target)

    def ended(self, reservation_id: str) -> list[Tell]:
        """The source has answered: it writes no more. Returns what may be released now."""
        self._sending.pop(reservation_id, None)
        held = self._held.pop(reservation_id, None)
        return [held] if held is not None else []

    def release(self, reservation_id: str, order: Tell) -> list[Tell]:
        """The order, if nobody can write into the reservation; else it is kept until then."""
        if reservation_id not in self._sending:
            return [order]
        self._held[reservation_id] = order
        return []

    def gone(self, source: str) -> list[Tell]:
        """The worker is known to write no more."""
        ended = [reservation_id for reservation_id, (writer, _) in self._sending.items() if writer == source]
        return [order for reservation_id in ended for order in self.ended(reservation_id)]

    def written_into(self, target: str) -> bool:
        """Whether somebody may still write into pages that the worker once reserved."""
        return any(reader == target for _, reader in self._sending.values())

    def target(self, reservation_id: str, source: str) -> str | None:
        """Whose reservation it is, where the worker was told to write into it and has not answered."""
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
        """Every reservation that somebody was told to write into, and has not answered about, with its writer."""
        return {reservation_id: source for reservation_id, (source, _) in self._sending.items()}

    def holds(self, reservation_id: str) -> bool:
        """Whether the reservation is open because somebody may still write into it."""
        return reservation_id in self._sending

    def __len__(self) -> int:
        return len(self._sending)
