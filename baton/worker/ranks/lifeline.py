"""The end of one rank ends all ranks of its worker: threads that see it even while a step hangs in a collective.

A follower sends a beat every `BEAT_S`. Without beats the leader sends no heartbeats, so that the router loses a worker
with a stopped rank as it loses a stopped worker.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from baton.logs import log
from baton.worker.ranks.channel import remove

BEAT_S = 0.5
SILENT_S = 3.0  # Without a beat for so long, a rank counts as stopped
GIVE_UP_S = 60.0  # Without a beat for so long, the worker ends, so that it is started again
GRACE_S = 5.0  # The time that the leader has to end by itself once a rank has ended
LOOK_S = 1.0  # The most that counts between two looks: the leader itself may have been stopped


@dataclass(eq=False)
class Beats:
    """Which ranks have ended, and for how long the others have been silent. Pure."""

    ranks: frozenset[int]
    ended: list[int] = field(default_factory=list)  # In the order in which they ended
    _silent_s: dict[int, float] = field(default_factory=dict)
    _looked_s: float | None = None
    _ending_s: float = 0.0  # For how long a rank has been missed

    def beat(self, rank: int) -> None:
        """The rank has sent a beat."""
        self._silent_s[rank] = 0.0

    def end(self, rank: int) -> None:
        """The rank's process has ended."""
        self.ended.append(rank)

    def look(self, now: float) -> str:
        """Count the time since the last look; returns the reason to end the process at once, or an empty string."""
        passed_s = 0.0 if self._looked_s is None else min(now - self._looked_s, LOOK_S)
        self._looked_s = now
        if self.ended:
            self._ending_s += passed_s
            return f"rank {self.ended[0]} has ended" if self._ending_s > GRACE_S else ""
        for rank in self.ranks:
            self._silent_s[rank] = self._silent_s.get(rank, 0.0) + passed_s
        longest_s, rank = max((self._silent_s[rank], rank) for rank in self.ranks)
        return f"rank {rank} has been silent for {longest_s:.0f} s" if longest_s > GIVE_UP_S else ""

    @property
    def healthy(self) -> bool:
        """Whether every rank runs."""
        return not self.ended and max(self._silent_s.values(), default=0.0) < SILENT_S


class Watch:
    """The leader's thread: reads the followers' lifelines, and ends the process when nothing else does."""

    def __init__(self, lifelines: Mapping[int, Any], exit_process: Callable[[int], object] = os._exit) -> None:
        self.beats = Beats(frozenset(lifelines))
        self._rank_of = {connection: rank for rank, connection in lifelines.items()}
        self._exit = exit_process
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether every rank runs."""
        return self.beats.healthy

    def wait_for_end(self, wait_s: float, of_all: bool = False) -> list[int]:
        """The ranks that have ended, once there is one (or all have), or after `wait_s`."""
        needed = len(self.beats.ranks) if of_all else 1
        with self._changed:
            self._changed.wait_for(lambda: len(self.beats.ended) >= needed, wait_s)
        return list(self.beats.ended)

    def _run(self) -> None:
        open_: dict[Any, int] = dict(self._rank_of)
        while not self._stopping:
            for ready in wait(list(open_), BEAT_S):
                connection: Any = ready
                try:
                    connection.recv_bytes()
                    self.beats.beat(open_[connection])
                except (EOFError, OSError):
                    with self._changed:
                        self.beats.end(open_.pop(connection))
                        self._changed.notify_all()
            reason = self.beats.look(time.monotonic())
            if reason and not self._stopping:
                log.error(f"The worker ends: {reason}.")
                self._exit(1)
                return

    def pause(self) -> None:
        """The ranks are about to end, as they should."""
        self._stopping = True

    def close(self) -> None:
        """Stop to watch."""
        self._stopping = True
        self._thread.join()
        for connection in self._rank_of:
            connection.close()


def end_with_leader(lifeline: Any, folder: Path) -> None:
    """Start a follower's thread: it sends beats, and ends the process at once when the leader's has ended."""

    def run() -> None:
        try:
            while True:
                if lifeline.poll(BEAT_S):
                    lifeline.recv_bytes()  # The leader sends nothing, so this is its end
                lifeline.send_bytes(b"\0")
        except (EOFError, OSError):
            remove(folder)
            os._exit(0)

    threading.Thread(target=run, name="lifeline", daemon=True).start()
