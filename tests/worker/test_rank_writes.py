"""The writes of a worker of several ranks, in every order in which their parts can end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.protocol.errors import InternalError
from baton.protocol.handoff import HandoffNotice
from baton.worker.core.rank_writes import RankWrites
from baton.worker.core.role import WriteEnded, WritePages
from baton.worker.core.write_watch import WriteWatch

NOTICE = HandoffNotice("v1", "r1", 4, (5,), (0,))


def command(write_id: int, notice: bool) -> WritePages:
    return WritePages(write_id, "d:1", (3, 4), (7, 8), NOTICE if notice else None, ((0, 3),) if notice else ())


@dataclass
class Played:
    """What a shell saw of some writes."""

    writes: RankWrites[int] = field(default_factory=RankWrites)
    ended: list[WriteEnded] = field(default_factory=list)
    notices: list[int] = field(default_factory=list)  # Writes whose notice was sent
    unfinished: set[tuple[int, int]] = field(default_factory=set)  # (write, rank)

    def start(self, write_id: int, num_ranks: int, notice: bool) -> None:
        part = self.writes.start(command(write_id, notice), range(num_ranks))
        assert part == WritePages(write_id, "d:1", (3, 4), (7, 8), None)
        self.unfinished |= {(write_id, rank) for rank in range(num_ranks)}

    def end(self, write_id: int, rank: int, error: str = "") -> None:
        self.unfinished.discard((write_id, rank))
        match self.writes.on_part_ended(rank, WriteEnded(write_id, 0 if error else 10, 0.5 + rank, error)):
            case WritePages() as notice:
                assert not any(left == write_id for left, _ in self.unfinished)
                assert (notice.source_pages, notice.target_pages, notice.notice) == ((), (), NOTICE)
                assert notice.checksummed == ((0, 3),)
                self.notices.append(write_id)
            case WriteEnded() as outcome:
                self.ended.append(outcome)


@given(st.data())
def test_each_write_ends_once_and_its_notice_follows_all_of_its_parts(data: st.DataObject) -> None:
    """Parts of several writes end in any order, some with an error; notices end in any order between them."""
    num_ranks = data.draw(st.integers(1, 4))
    with_notice = data.draw(st.lists(st.booleans(), min_size=1, max_size=4))
    played = Played()
    for write_id, notice in enumerate(with_notice):
        played.start(write_id, num_ranks, notice)
    failed: dict[int, str] = {}
    notices_ended: list[int] = []
    while played.unfinished or len(played.notices) > len(notices_ended):
        due = [write_id for write_id in played.notices if write_id not in notices_ended]
        choices: list[int | tuple[int, int]] = [*sorted(played.unfinished), *due]
        step = data.draw(st.sampled_from(choices))
        if isinstance(step, int):
            assert played.writes.awaits_notice(step)
            notices_ended.append(step)
            played.ended.append(played.writes.on_notice_ended(WriteEnded(step, 0, 0.1)))
            continue
        error = data.draw(st.sampled_from(["", "", f"rank {step[1]} failed"]))
        if error:
            failed.setdefault(step[0], error)
        played.end(step[0], step[1], error)
    assert sorted(outcome.write_id for outcome in played.ended) == list(range(len(with_notice)))
    assert {outcome.write_id: outcome.error for outcome in played.ended if outcome.error} == failed
    assert sorted(played.notices) == [i for i, notice in enumerate(with_notice) if notice and i not in failed]
    assert not len(played.writes)


@given(st.permutations(range(4)), st.booleans())
def test_a_write_has_the_bytes_of_all_ranks_and_the_time_of_the_slowest(order: list[int], notice: bool) -> None:
    played = Played()
    played.start(1, 4, notice)
    for rank in order:
        assert not played.ended and not played.notices
        played.end(1, rank)
    if notice:
        assert played.notices == [1] and not played.ended
        played.ended.append(played.writes.on_notice_ended(WriteEnded(1, 0, 0.1)))
    assert played.ended == [WriteEnded(1, 40, 3.5)]


@given(st.integers(2, 4), st.data())
def test_a_write_whose_rank_never_ends_stays_in_flight_and_its_peer_stalls(num_ranks: int, data: st.DataObject) -> None:
    played, watch = Played(), WriteWatch(limit_s=5.0)
    missing = data.draw(st.integers(0, num_ranks - 1))
    played.start(1, num_ranks, notice=True)
    watch.began(1, "d:1", 20)
    watch.look(0.0)
    for rank in data.draw(st.permutations([rank for rank in range(num_ranks) if rank != missing])):
        played.end(1, rank)
    assert not played.ended and not played.notices and len(played.writes) == 1
    stalled = [watch.look(float(now)) for now in range(1, 8)]
    assert stalled[-1] == ["d:1"]


def test_a_notice_that_cannot_be_sent_is_the_error_of_its_write() -> None:
    writes: RankWrites[int] = RankWrites()
    writes.start(command(1, notice=True), range(1))
    assert not writes.awaits_notice(1)
    assert writes.on_part_ended(0, WriteEnded(1, 10, 0.5)) == replace(
        command(1, notice=True), source_pages=(), target_pages=()
    )
    assert writes.on_notice_ended(WriteEnded(1, 0, 0.1, "d:1 has gone")) == WriteEnded(1, 10, 0.5, "d:1 has gone")


def test_ends_that_no_write_waits_for_are_errors() -> None:
    writes: RankWrites[int] = RankWrites()
    with pytest.raises(InternalError, match="not in flight"):
        writes.on_part_ended(0, WriteEnded(1, 10, 0.5))
    writes.start(command(1, notice=False), range(2))
    writes.on_part_ended(0, WriteEnded(1, 10, 0.5))
    with pytest.raises(InternalError, match="ended already"):
        writes.on_part_ended(0, WriteEnded(1, 10, 0.5))
    with pytest.raises(InternalError, match="before its pages"):
        writes.on_notice_ended(WriteEnded(1, 0, 0.1))
    with pytest.raises(InternalError, match="in flight already"):
        writes.start(command(1, notice=False), range(2))
