"""What the loop of a worker of several ranks drives: each call is made on every rank.

A worker of one rank has none of these: its loop drives its executor, transport and host pages themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from baton.engine.cuda_executor import CudaExecutor
from baton.engine.executor import TorchExecutor
from baton.engine.host_pages import HostPages
from baton.engine.step import StepPlan, StepResult
from baton.engine.step_arrays import step_arrays
from baton.engine.storage import page_checksum
from baton.kv_transfer.transport import Notice
from baton.protocol.errors import BatonError
from baton.protocol.head_slices import heads_of
from baton.protocol.worker import Endpoint
from baton.worker.background_transport import BackgroundTransport, Opened, TransportEvent
from baton.worker.core.rank_writes import RankWrites
from baton.worker.core.role import SwapIn, SwapOut, WriteEnded, WritePages
from baton.worker.core.session_commands import Connect, Disconnect, NewTransport
from baton.worker.ranks.commands import Checksums, Copied, ExpectPeers, HeadChecksums, Reply, Step
from baton.worker.ranks.leader import NAMED_S, Followers


@dataclass(eq=False)
class RankedExecutor:
    """`Executor` of all ranks: rank 0's part is `local`, and a step that it has finished every rank has finished.

    Each rank writes its KV before the step's last collective, which rank 0 needs for its tokens.
    """

    local: TorchExecutor | CudaExecutor
    followers: Followers
    async_execution: bool = field(init=False)

    def __post_init__(self) -> None:
        self.async_execution = self.local.async_execution

    def launch(self, plan: StepPlan) -> Any:
        arrays = step_arrays(plan, self.local.layout.page_size)
        self.followers.send(Step(arrays))
        try:
            return self.local.launch(plan, arrays)
        except BatonError:
            self.followers.check(NAMED_S)  # The rank whose end the collective has met
            raise

    def done(self, launched: Any) -> bool:
        return self.local.done(launched)

    def collect(self, launched: Any) -> StepResult:
        return self.local.collect(launched)

    def page_checksum(self, page: int) -> int:
        """CRC-32 of a page, equal for every number of ranks."""
        heads: dict[int, int] = {}
        for rank, answer in self.followers.ask(HeadChecksums(page), Checksums).items():
            heads |= zip(self._heads(rank), answer.heads, strict=True)
        heads |= zip(self._heads(0), self.local.head_checksums(page), strict=True)
        return page_checksum([heads[head] for head in range(self._num_heads)])

    @property
    def _num_heads(self) -> int:
        return self.local.layout.num_kv_heads

    def _heads(self, rank: int) -> range:
        return heads_of(self._num_heads, self.followers.num_ranks, rank)


@dataclass(eq=False)
class RankedHostPages:
    """`PageCopies` of all ranks."""

    local: HostPages
    followers: Followers

    def copy_out(self, pages: Sequence[int], slots: Sequence[int]) -> None:
        """A peer may write to the pages once this returns, so every rank has copied them then."""
        self.followers.send(SwapOut(tuple(pages), tuple(slots)))
        self.local.copy_out(pages, slots)
        self.followers.answers(Copied)

    def copy_in(self, slots: Sequence[int], pages: Sequence[int]) -> None:
        """Only this worker reads the pages, with later commands."""
        self.followers.send(SwapIn(tuple(slots), tuple(pages)))
        self.local.copy_in(slots, pages)


@dataclass(eq=False)
class RankedTransport:
    """`PageTransport` of all ranks; `local` is rank 0's, `opened` the followers' endpoints."""

    local: BackgroundTransport
    followers: Followers
    expects_peers: Callable[[], bool]  # Whether a peer may write at any moment
    opened: dict[int, Opened] = field(default_factory=dict)
    _writes: RankWrites[int] = field(default_factory=RankWrites)
    _opening: bool = False
    _expected: bool = False

    @property
    def endpoint(self) -> Endpoint:
        """Of all ranks."""
        own = self.local.endpoint
        others = [self.opened[rank].endpoint.ranks[0] for rank in range(1, self.followers.num_ranks)]
        return replace(own, ranks=(own.ranks[0], *others))

    @property
    def in_flight(self) -> bool:
        return self._opening or len(self._writes) > 0 or self.local.in_flight

    def renew(self, agent: str) -> None:
        self.opened.clear()
        self._opening = True
        self.followers.send(NewTransport(agent))
        self.local.renew(agent)

    def connect(self, peer: Endpoint) -> None:
        self.followers.send(Connect(peer))
        self.local.connect(peer)

    def disconnect(self, agent: str) -> None:
        self.followers.send(Disconnect(agent))
        self.local.disconnect(agent)

    def write(self, command: WritePages) -> None:
        """A handoff without pages is a notice that rank 0 sends."""
        ranks = range(self.followers.num_ranks) if command.source_pages else range(1)
        part = self._writes.start(command, ranks)
        if len(ranks) > 1:
            self.followers.send(part)
        self.local.write(part)

    def progress(self) -> None:
        self.local.progress()
        self.followers.check()

    def poll(self) -> list[TransportEvent]:
        expected = self.expects_peers()
        if expected is not self._expected:
            self._expected = expected
            self.followers.send(ExpectPeers(expected))
        events: list[TransportEvent] = []
        replies: list[tuple[int, Reply | Notice]] = [*self.followers.replies()]
        replies += [(0, event) for event in self.local.poll()]
        for rank, reply in replies:
            match reply:
                case WriteEnded():
                    events += self._on_write_ended(rank, reply)
                case Opened():
                    self.opened[rank] = reply
                case Notice():
                    events.append(reply)
        if self._opening and len(self.opened) == self.followers.num_ranks:
            self._opening = False
            events.append(Opened(self.endpoint))
        return events

    def _on_write_ended(self, rank: int, outcome: WriteEnded) -> list[WriteEnded]:
        if self._writes.awaits_notice(outcome.write_id):
            return [self._writes.on_notice_ended(outcome)]
        match self._writes.on_part_ended(rank, outcome):
            case WritePages() as notice:
                self.local.write(notice)
            case WriteEnded() as whole:
                return [whole]
        return []

    def close(self) -> None:
        self.local.close()
        self.followers.close()
