"""The network between virtual workers: writes on their way, cut cables, broken connections, corrupt pages.

Each pair of ranks with KV heads in common has a connection and a write of its own. As the bytes of a write land, the
network checks that the pages still belong to the reservation they were granted for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from baton.protocol.head_slices import heads_of
from baton.router.core.transfers import ORPHAN_S
from baton.simulator.token_checker import Violation
from baton.simulator.virtual_worker import RankPair, VirtualWorker
from baton.worker.core.role import WritePages


@dataclass(eq=False)
class PageWrite:
    """A write from a rank to a rank. The bytes may land before its source sees that it has ended, also while that is
    silent. Only that of one pair carries its handoff's notice; other notices travel alone."""

    source: VirtualWorker
    command: WritePages
    pair: RankPair
    whole: bool = True  # it is all that its command asks for
    landed: bool = False
    called_off: bool = False  # it ended for its source, but it may still arrive
    until_s: float = math.inf  # its source is dead: nothing of it arrives after this
    due: bool = False  # what happens to it next has a time

    @property
    def target(self) -> str:
        """The name of the worker that it writes to."""
        return self.command.agent.rpartition(":")[0]

    @property
    def rank(self) -> int:
        """The source's rank that writes."""
        return self.pair[0]

    @property
    def ends(self) -> tuple[str, str]:
        """The ranks that it is between."""
        return f"{self.source.name}/{self.rank}", f"{self.target}/{self.pair[1].target_rank}"

    @property
    def connection(self) -> tuple[str, int, int]:
        """What breaks on its own: the agent, our rank and its rank."""
        return self.command.agent, self.rank, self.pair[1].target_rank

    @property
    def num_bytes(self) -> int:
        """Bytes of its piece of all pages."""
        layout = self.source.session.info.endpoint.layout
        return len(self.command.source_pages) * self.pair[1].num_heads * layout.head_bytes


@dataclass(eq=False)
class PageNetwork:
    """Every write in flight. `workers` are those of the cluster, by name."""

    rng: random.Random
    workers: Mapping[str, VirtualWorker]
    writes: list[PageWrite] = field(default_factory=list)
    cut: set[frozenset[str]] = field(default_factory=set)  # pairs of workers or ranks between which nothing passes
    slow: set[frozenset[str]] = field(default_factory=set)  # pairs of ranks between which writes take long
    failing: float = 0.0  # share of the writes whose connection breaks, and with it those beside them
    corruption: float = 0.0  # share of the handoffs whose pages arrive corrupt, which the target notices
    losing: float = 0.0  # share of the notices that are lost, though their sources see that they are sent
    corrupted: set[str] = field(default_factory=set)  # their reservations

    def is_cut(self, write: PageWrite) -> bool:
        """Whether nothing passes between the write's ranks."""
        if not self.cut:
            return False
        return frozenset((write.source.name, write.target)) in self.cut or frozenset(write.ends) in self.cut

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
        self.cut = {pair for pair in self.cut if source.name not in {one.partition("/")[0] for one in pair}}

    def land(self, write: PageWrite) -> str:
        """Put the bytes and the notice at the target. Returns an error if it cannot be reached.

        Raises `Violation` unless the pages are still the ones granted.
        """
        source, command = write.source, write.command
        target = self.workers.get(write.target)
        here = target is not None and target.state.agent == command.agent
        if target is None or not here or write.pair[1].target_rank in target.dead_ranks:
            return "unreachable"
        if (command.agent not in source.peers or write.connection in source.broken) and not write.called_off:
            return "unreachable"
        self._check(write, target)
        self._copy(write, target)
        lost = bool(self.losing) and self.rng.random() < self.losing
        # NIXL sends the notice when a write that it has completes.
        if command.notice is not None and not write.called_off and not lost:
            target.notices.append(command.notice)
            if self.corruption and self.rng.random() < self.corruption:
                self.corrupted.add(command.notice.reservation_id)
        write.landed = True
        return ""

    def _copy(self, write: PageWrite, target: VirtualWorker) -> None:
        rank, piece = write.pair
        source, command = write.source, write.command
        num_heads = source.session.info.endpoint.layout.num_kv_heads
        first = rank * len(heads_of(num_heads, source.num_ranks, 0)) + piece.source_head
        place = piece.target_rank * len(heads_of(num_heads, target.num_ranks, 0)) + piece.target_head
        for index in range(piece.num_heads):
            sent, arrived = source.memory.pages[first + index], target.memory.pages[place + index]
            for ours, theirs in zip(command.source_pages, command.target_pages, strict=True):
                arrived[theirs] = list(sent[ours])

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
        """The connection of two ranks breaks: its writes end, and none gets through before the peers reconnect."""
        source, connection = write.source, write.connection
        source.broken.add(connection)
        ended = [one for one in self._between(source, connection[0]) if one.connection == connection]
        self.writes = [one for one in self.writes if one not in ended]
        return [(one, "the connection broke") for one in ended if not one.called_off]

    def _between(self, source: VirtualWorker, agent: str) -> list[PageWrite]:
        return [one for one in self.writes if one.source is source and one.command.agent == agent]
