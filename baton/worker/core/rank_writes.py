"""Counts a session's writes over the ranks that execute them. Pure.

    start ──► every part is written ──last part has ended──► the notice ──► WriteEnded
                                              └── no notice, or an error ──► WriteEnded

A part is what one rank writes, or in the simulator what one rank writes to one rank of the peer. The notice of a
handoff is sent alone after its last part, so a peer never gets one before all of its ranks have their pages.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from baton.protocol.errors import InternalError
from baton.worker.core.role import WriteEnded, WritePages

Part = TypeVar("Part", bound=Hashable)


@dataclass(slots=True, eq=False)
class _Write(Generic[Part]):
    command: WritePages
    unfinished: set[Part]  # Empty while the notice is on its way
    outcome: WriteEnded  # Of the parts that have ended


@dataclass(eq=False)
class RankWrites(Generic[Part]):
    """The writes of one worker that are in flight. A part that never ends leaves its write in flight."""

    _writes: dict[int, _Write[Part]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Writes in flight."""
        return len(self._writes)

    def start(self, command: WritePages, parts: Collection[Part]) -> WritePages:
        """Begin a write of at least one part; returns what each part writes: the same pages, without the notice."""
        if command.write_id in self._writes or not parts:
            raise InternalError(f"Write {command.write_id} is in flight already, or has no parts.")
        self._writes[command.write_id] = _Write(command, set(parts), WriteEnded(command.write_id, 0, 0.0))
        return replace(command, notice=None, checksummed=())

    def on_part_ended(self, part: Part, outcome: WriteEnded) -> WritePages | WriteEnded | None:
        """A part has ended: the notice to send alone if it is due, or the end of the whole write if this is it.

        The end of the notice comes back through `on_notice_ended`. Raises `InternalError` for a part that is not
        unfinished.
        """
        write = self._find(outcome.write_id)
        if part not in write.unfinished:
            raise InternalError(f"Part {part} of write {outcome.write_id} has ended already.")
        write.unfinished.remove(part)
        write.outcome = _sum(write.outcome, outcome)
        if write.unfinished:
            return None
        if write.command.notice is None or write.outcome.error:
            return self._end(write)
        return replace(write.command, source_pages=(), target_pages=())

    def on_notice_ended(self, outcome: WriteEnded) -> WriteEnded:
        """The notice is at the peer, or has failed: the end of the whole write."""
        write = self._find(outcome.write_id)
        if write.unfinished:
            raise InternalError(f"The notice of write {outcome.write_id} was sent before its pages.")
        write.outcome = _sum(write.outcome, outcome)
        return self._end(write)

    def awaits_notice(self, write_id: int) -> bool:
        """Whether every part of the write has ended, so that the next end is that of its notice."""
        return not self._find(write_id).unfinished

    def _find(self, write_id: int) -> _Write[Part]:
        write = self._writes.get(write_id)
        if write is None:
            raise InternalError(f"Write {write_id} is not in flight.")
        return write

    def _end(self, write: _Write[Part]) -> WriteEnded:
        del self._writes[write.command.write_id]
        return write.outcome


def _sum(before: WriteEnded, ended: WriteEnded) -> WriteEnded:
    """Both together: all bytes, the longest time, and the first error."""
    return WriteEnded(
        before.write_id,
        before.num_bytes + ended.num_bytes,
        max(before.seconds, ended.seconds),
        before.error or ended.error,
    )
