"""Rank 0's side of a worker of several ranks: it starts the followers, sends them commands, and reads their replies."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from baton.config.process_config import WorkerConfig
from baton.protocol.errors import InternalError
from baton.worker.background_transport import Opened
from baton.worker.ranks.channel import Channel, MeetingPlace, pickled
from baton.worker.ranks.commands import Command, Failed, RankPlan, Reply
from baton.worker.ranks.lifeline import Watch

NAMED_S = 1.0  # How long the end of a rank may come after the error that it causes
END_S = 1.0  # How long the followers may take to close their transports

ReplyT = TypeVar("ReplyT", bound=Reply)


class RankHandle(Protocol):
    """A follower's process, as it was started."""

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        ...

    def kill(self) -> None:
        """End the process, even a stopped one, and return when it has ended."""
        ...


StartRank = Callable[[RankPlan], RankHandle]
"""Starts a process that calls `follow` with the plan."""


@dataclass(eq=False)
class Followers:
    """Ranks 1 to `num_ranks` - 1 of a worker. Each method raises `InternalError` that names a rank which has ended."""

    num_ranks: int
    _place: MeetingPlace
    handles: dict[int, RankHandle] = field(default_factory=dict)
    _channels: dict[int, Channel] = field(default_factory=dict)
    _watch: Watch | None = None
    _kept: list[tuple[int, Reply]] = field(default_factory=list)  # Replies that arrived during `ask`
    _reasons: dict[int, str] = field(default_factory=dict)  # Of ranks that have failed
    _poll: Any = field(default_factory=select.poll)
    _rank_of: dict[int, int] = field(default_factory=dict)  # By file descriptor

    @property
    def folder(self) -> Path:
        """Where the ranks open their process group."""
        return self._place.folder

    @property
    def healthy(self) -> bool:
        """Whether every rank runs; may be called from any thread."""
        return self._watch is None or self._watch.healthy

    def join(self) -> None:
        """Wait until every follower has connected."""
        lifelines: dict[int, Any] = {}
        while len(self._channels) < len(self.handles) or len(lifelines) < len(self.handles):
            match self._place.accept():
                case None:
                    self._check_started()
                case rank, True, connection:
                    lifelines[rank] = connection
                case rank, _, connection:
                    self._channels[rank] = Channel(connection)
                    self._poll.register(connection.fileno(), select.POLLIN)
                    self._rank_of[connection.fileno()] = rank
        self._place.end_listening()
        self._watch = Watch(lifelines)

    def _check_started(self) -> None:
        for rank, handle in self.handles.items():
            if handle.ended:
                if rank in self._channels:
                    self._raise(rank)
                raise InternalError(f"Rank {rank} has ended before it joined its worker.")

    def loaded(self) -> dict[int, Opened]:
        """Wait until every follower has loaded; returns their transports' endpoints by rank."""
        opened = self.answers(Opened)
        self._place.close()
        return opened

    def send(self, command: Command) -> None:
        """Send a command to every follower."""
        message = pickled(command)
        for rank, channel in self._channels.items():
            try:
                channel.send_pickled(message)
            except OSError:
                self._raise(rank)

    def ask(self, command: Command, kind: type[ReplyT]) -> dict[int, ReplyT]:
        """Send a command to every follower and wait for each one's reply of this kind, by rank."""
        self.send(command)
        return self.answers(kind)

    def answers(self, kind: type[ReplyT]) -> dict[int, ReplyT]:
        """Wait for each follower's next reply of this kind, by rank."""
        found: dict[int, ReplyT] = {}
        for rank in self._channels:
            while rank not in found:
                reply = self._receive(rank)
                if isinstance(reply, kind):
                    found[rank] = reply
                else:
                    self._kept.append((rank, reply))
        return found

    def replies(self) -> list[tuple[int, Reply]]:
        """(rank, reply) for those that have arrived."""
        replies, self._kept = self._kept, []
        while ready := self._poll.poll(0):
            replies += [(rank, self._receive(rank)) for rank in (self._rank_of[number] for number, _ in ready)]
        return replies

    def _receive(self, rank: int) -> Reply:
        try:
            reply: Reply = self._channels[rank].receive()
        except (EOFError, OSError):
            self._raise(rank)
        if isinstance(reply, Failed):
            self._reasons[rank] = reply.reason
            self._raise(rank)
        return reply

    def check(self, wait_s: float = 0.0) -> None:
        """Raise if a rank has ended, or ends within `wait_s`."""
        if self._watch is not None and (ended := self._watch.wait_for_end(wait_s)):
            self._raise(ended[0])

    def _raise(self, rank: int) -> NoReturn:
        """Raise with the reason that the follower has sent last, if it could."""
        channel = self._channels[rank]
        with contextlib.suppress(EOFError, OSError):
            while channel.readable(0.0):
                if isinstance(last := channel.receive(), Failed):
                    self._reasons[rank] = last.reason
        reason = self._reasons.get(rank)
        raise InternalError(f"Rank {rank} has ended." if reason is None else f"Rank {rank}: {reason}")

    @contextlib.contextmanager
    def ended_on_error(self) -> Iterator[None]:
        """End the followers when the block raises; the error of the rank that has ended first goes before."""
        try:
            yield
        except BaseException as error:
            try:
                if isinstance(error, Exception):
                    self.check(NAMED_S)
            finally:
                self.close()
            raise

    def close(self) -> None:
        """End the followers, also stopped ones."""
        if self._watch is not None:
            self._watch.pause()
        for channel in self._channels.values():
            channel.close()
        if self._watch is not None:
            self._watch.wait_for_end(END_S, of_all=True)
        for handle in self.handles.values():
            handle.kill()
        if self._watch is not None:
            self._watch.close()
        self._place.close()


def start_followers(plan: WorkerConfig, agent: str, start_rank: StartRank) -> Followers:
    """Start the followers of a worker and wait until they have connected; they then load.

    `agent` is the worker's name for peers at first. Raises `InternalError` when one ends instead.
    """
    place = MeetingPlace()
    followers = Followers(plan.engine.ranks, place)
    with followers.ended_on_error():
        for rank in range(1, plan.engine.ranks):
            followers.handles[rank] = start_rank(RankPlan(plan, rank, agent, place.folder, place.authkey))
        followers.join()
    return followers
