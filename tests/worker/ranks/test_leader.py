"""A leader and the processes of its followers: replies, errors and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from baton.builtin_model import CHECKPOINT
from baton.harness.forked import forked
from baton.harness.process_cluster import plans
from baton.protocol.errors import InternalError
from baton.protocol.worker import Endpoint
from baton.worker.background_transport import Opened
from baton.worker.core.role import WriteEnded
from baton.worker.ranks import channel
from baton.worker.ranks.channel import Channel, join
from baton.worker.ranks.commands import Checksums, Copied, Failed, HeadChecksums, RankPlan
from baton.worker.ranks.leader import Followers, start_followers
from baton.worker.ranks.lifeline import end_with_leader
from tests.worker.sessions import LAYOUT

WORKER = plans(CHECKPOINT, 64, 16)[1]
Follow = Callable[[RankPlan, Channel], None]


@dataclass
class Started:
    """`RankHandle` of a process of the fork server."""

    process: Any

    @property
    def ended(self) -> bool:
        return self.process.exitcode is not None

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def _serve(plan: RankPlan, follow: Follow) -> None:
    joined, lifeline = join(plan.folder, plan.authkey, plan.rank)
    end_with_leader(lifeline, plan.folder)
    joined.send(Opened(Endpoint("w:1", LAYOUT)))
    follow(plan, joined)


def answer_checksums(plan: RankPlan, joined: Channel) -> None:
    """Report the end of a write before each answer."""
    with contextlib.suppress(EOFError):  # The leader has ended
        while True:
            command = joined.receive()
            joined.send(WriteEnded(plan.rank, 1, 0.5))
            joined.send(Checksums((plan.rank, command.page)))


def fail(plan: RankPlan, joined: Channel) -> None:
    joined.send(Failed("There is not enough memory."))
    os._exit(1)


def end(plan: RankPlan, joined: Channel) -> None:
    os._exit(1)


def end_at_once(plan: RankPlan) -> None:
    os._exit(1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(channel.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def started(follow: Follow, num_ranks: int = 3) -> Followers:
    def start_rank(plan: RankPlan) -> Started:
        process = forked(_serve, plan, follow)
        process.start()
        return Started(process)

    plan = replace(WORKER, name="w", engine=WORKER.engine.changed(ranks=num_ranks))
    return start_followers(plan, "w:1", start_rank)


@pytest.fixture
def answering(folder: Path) -> Iterator[Followers]:
    followers = started(answer_checksums)
    assert sorted(followers.loaded()) == [1, 2]
    yield followers
    followers.close()


def pids(followers: Followers) -> list[int]:
    return [handle.process.pid for handle in followers.handles.values() if isinstance(handle, Started)]


def test_replies_of_other_kinds_wait_for_the_next_look(answering: Followers, folder: Path) -> None:
    assert list(folder.glob("baton-ranks-*")) == [], "the folder is gone once all have loaded"
    answers = answering.ask(HeadChecksums(7), Checksums)
    assert {rank: answer.heads for rank, answer in answers.items()} == {1: (1, 7), 2: (2, 7)}
    assert sorted(answering.replies()) == [(rank, WriteEnded(rank, 1, 0.5)) for rank in (1, 2)]
    assert answering.replies() == []
    assert answering.healthy


def test_the_end_of_a_rank_is_an_error_that_names_it(answering: Followers) -> None:
    os.kill(pids(answering)[1], signal.SIGKILL)
    with pytest.raises(InternalError, match=r"Rank 2 has ended\."):
        answering.check(30.0)
    with pytest.raises(InternalError, match=r"Rank 2 has ended\."):
        answering.ask(HeadChecksums(7), Checksums)
    assert not answering.healthy


def test_a_rank_that_cannot_load_ends_the_worker_with_its_reason(folder: Path) -> None:
    followers = started(fail)
    with pytest.raises(InternalError, match=r"Rank \d: There is not enough memory\."), followers.ended_on_error():
        followers.answers(Copied)
    assert not any(psutil.pid_exists(pid) for pid in pids(followers))
    assert list(folder.glob("baton-ranks-*")) == []


def test_an_error_of_the_leader_itself_yields_to_the_end_of_the_rank_that_caused_it(folder: Path) -> None:
    followers = started(end, num_ranks=2)
    with pytest.raises(InternalError, match=r"Rank 1 has ended\."), followers.ended_on_error():
        raise InternalError("A collective has failed.")


def test_a_rank_that_ends_before_it_joins_ends_the_worker(folder: Path) -> None:
    def start_rank(plan: RankPlan) -> Started:
        process = forked(end_at_once, plan)
        process.start()
        return Started(process)

    plan = replace(WORKER, name="w", engine=WORKER.engine.changed(ranks=2))
    with pytest.raises(InternalError, match="Rank 1 has ended before it joined"):
        start_followers(plan, "w:1", start_rank)
    assert list(folder.glob("baton-ranks-*")) == []


def test_a_leader_ends_its_followers_and_waits_for_no_stopped_one(answering: Followers) -> None:
    processes = pids(answering)
    os.kill(processes[0], signal.SIGSTOP)
    began_s = time.monotonic()
    answering.close()
    assert time.monotonic() - began_s < 20.0
    assert not any(psutil.pid_exists(pid) for pid in processes)
