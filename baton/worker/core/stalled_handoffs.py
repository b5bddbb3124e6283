"""Stalled handoffs: no request waits for them any more, but their writes have not ended. Pure.

A peer that cannot be reached holds up a write for as long as its cable is cut. Nothing calls such a write off for
good: what it has queued is sent when the cable is whole again, also after both sides have let go of each other. So the
request goes on without it, and the pages it reads are held here until it has ended, as its target holds others.

    sending ──no progress──► HandoffStalled, pages shared with it ──its last write ends──► HandoffEnded, pages released
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.engine.kv_pages import PagePool
from baton.engine.sequence import Sequence
from baton.protocol.handoff import HandoffOutcome
from baton.protocol.messages import HandoffEnded, HandoffStalled
from baton.worker.core.handoff_sender import HandoffSender
from baton.worker.core.role import Command, Send, WriteEnded


@dataclass(slots=True, eq=False)
class _Stalled:
    request_id: str
    sender: HandoffSender
    pages: tuple[int, ...]
    since_s: float


@dataclass(eq=False)
class StalledHandoffs:
    """Each is removed at the end of its last write."""

    pool: PagePool
    _of_write: dict[int, _Stalled] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._of_write)

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Requests whose pages a write still reads."""
        return tuple(dict.fromkeys(stalled.request_id for stalled in self._of_write.values()))

    def hold(self, sequence: Sequence, sender: HandoffSender, now: float) -> Command:
        """Detach a handoff with writes in flight from its sequence."""
        sender.cancelled = True
        pages = tuple(sequence.page_table[: sender.sent])
        self.pool.share(pages)
        stalled = _Stalled(sequence.request_id, sender, pages, now)
        self._of_write.update(dict.fromkeys(sender.in_flight, stalled))
        return Send(HandoffStalled(sequence.request_id, sender.reservation.reservation_id))

    def on_write_ended(self, outcome: WriteEnded, now: float) -> list[Command] | None:
        """Account for a write; None if it belongs to no stalled handoff."""
        stalled = self._of_write.pop(outcome.write_id, None)
        if stalled is None:
            return None
        sender = stalled.sender
        sender.on_write_ended(outcome)
        if sender.in_flight:
            return []
        self.pool.release(stalled.pages)
        # Even if the notice went with it: the target was told to commit nothing.
        end = HandoffOutcome.FAILED if sender.error else HandoffOutcome.DRAINED
        report = sender.report(stalled.since_s, now)
        ended = HandoffEnded(stalled.request_id, sender.reservation.reservation_id, end, report, sender.error)
        return [Send(ended)]
