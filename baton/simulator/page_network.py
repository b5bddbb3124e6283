"""The network between virtual workers: writes on their way, cut cables, broken connections, corrupt pages.

It checks as the bytes of a write land that the pages still belong to the reservation they were granted for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from baton.router.core.transfers import ORPHAN_S
from baton.simulator.token_checker import Violation
from baton.simulator.virtual_worker import VirtualWorker
from baton.worker.core.role import WritePages


@dataclass(eq=False)
class PageWrite:
    """A write on its way. The bytes may land before its source sees that it has ended, also while that is silent."""

    source: VirtualWorker
    command: WritePages
    landed: bool = False
    called_off: bool = False  # it ended for its source, but it may still arrive
    until_s: float = math.inf  # its source is dead: nothing of it arrives after this
    due: bool = False  # what happens to it next has a time

    @property
    def target(self) -> str:
        """The name of the worker that it writes to."""
        return self.command.agent.rpartition(":")[0]


@dataclass(eq=False)
class PageNetwork:
    """Every write in flight. `workers` are those of the cluster, by name."""

    rng: random.Random
    workers: Mapping[str, VirtualWorker]
    writes: list[PageWrite] = field(default_factory=list)
    cut: set[frozenset[str]] = field(default_factory=set)  # pairs of workers between which nothing passes
    failing: float = 0.0  # share of the writes whose connection breaks, and with it those beside them
    corruption: float = 0.0  # share of the handoffs whose pages arrive corrupt, which the target notices
    corrupted: set[str] = field(default_factory=set)  # their reservations

    def is_cut(self, write: PageWrite) -> bool:
        """Whether nothing passes between the write's workers."""
        return bool(self.cut) and frozenset((write.source.name, write.target)) in self.cut

    def expire(self, now: float) -> None:
        """The kernels of dead sources give up."""
        if any(now >= write.until_s for write in self.writes):
            self.writes = [write for write in self.writes if now < write.until_s]

    def arrive_late(self, write: PageWrite) -> None:
        """Of a write that was called off, the bytes may arrive all the same, as they are at the source by then."""
        self.writes.remove(write)
        if not write.landed:
            self.land(write)

    def finish(self, write: PageWrite) -> list[tuple[PageWrite, str]]:
        """The write ends. Returns the writes whose sources see that now, each with its error."""
        error = "" if write.landed else self.land(write)
        if not error and self.failing and self.rng.random() < self.failing:
            return self._break(write)
        self.writes.remove(write)
        return [(write, error)]

    def disconnect(self, source: VirtualWorker, agent: str) -> list[PageWrite]:
        """The source closes the connection to a peer: its writes have ended there, but may arrive all the same."""
        ended = [one for one in self._between(source, agent) if not one.called_off]
        for write in ended:
            write.called_off = True
        return ended

    def close(self, source: VirtualWorker) -> None:
        """The source closes its transport."""
        self.writes = [write for write in self.writes if write.source is not source]

    def died(self, source: VirtualWorker, may_arrive: Iterable[PageWrite], now: float) -> None:
        """The source's process has ended. Its kernel still delivers the writes that `may_arrive`."""
        for write in may_arrive:
            write.called_off, write.until_s = True, now + ORPHAN_S
        self.writes = [write for write in self.writes if write.source is not source or write.until_s < math.inf]
        self.cut = {pair for pair in self.cut if source.name not in pair}

    def land(self, write: PageWrite) -> str:
        """Put the bytes and the notice at the target. Returns an error if it cannot be reached.

        Raises `Violation` unless the pages are still the ones granted.
        """
        source, command = write.source, write.command
        target = self.workers.get(write.target)
        here = target is not None and target.state.agent == command.agent
        if target is None or not here or (command.agent not in source.peers and not write.called_off):
            return "unreachable"
        self._check(write, target)
        for ours, theirs in zip(command.source_pages, command.target_pages, strict=True):
            target.memory.pages[theirs] = list(source.memory.pages[ours])
        if command.notice is not None and not write.called_off:  # NIXL sends it when a write that it has completes
            target.notices.append(command.notice)
            if self.corruption and self.rng.random() < self.corruption:
                self.corrupted.add(command.notice.reservation_id)
        write.landed = True
        return ""

    def _check(self, write: PageWrite, target: VirtualWorker) -> None:
        source, command = write.source, write.command
        for ours, theirs in zip(command.source_pages, command.target_pages, strict=True):
            if target.state.pool.generation(theirs) != source.granted[command.agent, theirs]:
                raise Violation(f"{source.name} writes into a page of {target.name} that has another owner")
            if not target.state.pool.held(theirs):
                raise Violation(f"{source.name} writes into a page of {target.name} that is not held")
            if not source.state.pool.held(ours) and not write.called_off:
                raise Violation(f"{source.name} sends a page that it has released")

    def _break(self, write: PageWrite) -> list[tuple[PageWrite, str]]:
        """The connection breaks: its writes end, and none gets through before the peers reconnect."""
        source, agent = write.source, write.command.agent
        source.peers.discard(agent)
        ended = self._between(source, agent)
        self.writes = [one for one in self.writes if one not in ended]
        return [(one, "the connection broke") for one in ended if not one.called_off]

    def _between(self, source: VirtualWorker, agent: str) -> list[PageWrite]:
        return [one for one in self.writes if one.source is source and one.command.agent == agent]
