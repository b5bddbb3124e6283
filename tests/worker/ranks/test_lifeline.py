"""When a worker of several ranks counts one of them as stopped or ended."""

from __future__ import annotations

import threading
from multiprocessing import Pipe

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.worker.ranks import lifeline
from baton.worker.ranks.lifeline import GIVE_UP_S, GRACE_S, SILENT_S, Beats, Watch


def looks(beats: Beats, seconds: int, start_s: float = 0.0) -> list[str]:
    return [beats.look(start_s + second) for second in range(1, seconds + 1)]


def test_a_rank_without_beats_is_unhealthy_until_its_next_beat() -> None:
    beats = Beats(frozenset({1, 2}))
    beats.look(0.0)
    for second in range(1, 8):
        beats.beat(1)
        assert not beats.look(second)
        assert beats.healthy is (second < SILENT_S)
    beats.beat(2)
    assert beats.healthy


def test_a_worker_with_a_rank_that_stays_silent_ends() -> None:
    beats = Beats(frozenset({1, 2}))
    reasons = []
    for second in range(int(GIVE_UP_S) + 3):
        beats.beat(1)
        reasons.append(beats.look(float(second)))
    assert reasons[-1] == f"rank 2 has been silent for {GIVE_UP_S + 2:.0f} s"
    assert reasons.count("") == GIVE_UP_S + 1


def test_a_leader_that_was_stopped_itself_misses_no_rank() -> None:
    beats = Beats(frozenset({1}))
    beats.look(0.0)
    assert beats.look(1000.0) == ""
    assert beats.healthy


def test_a_leader_that_does_not_end_by_itself_after_a_rank_is_ended() -> None:
    beats = Beats(frozenset({1, 2}))
    beats.look(0.0)
    beats.end(2)
    assert not beats.healthy
    reasons = looks(beats, int(GRACE_S) + 1)
    assert reasons == [""] * int(GRACE_S) + ["rank 2 has ended"]


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.floats(0.0, 0.9)), max_size=200))
def test_ranks_that_beat_at_least_every_second_are_healthy(steps: list[tuple[int, float]]) -> None:
    """Looks between beats, however many, add up to the time that has passed."""
    beats, now = Beats(frozenset({1, 2, 3})), 0.0
    last = {1: 0.0, 2: 0.0, 3: 0.0}
    beats.look(now)
    for rank, passed_s in steps:
        now += passed_s
        beats.beat(rank)
        last[rank] = now
        for other, beat_s in last.items():
            if now - beat_s > 1.0:
                beats.beat(other)
                last[other] = now
        assert beats.look(now) == ""
        assert beats.healthy


def test_the_end_of_a_process_is_seen_and_ends_a_leader_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "GRACE_S", 0.5)
    ours, theirs = Pipe()
    codes: list[int] = []
    exited = threading.Event()

    def exit_process(code: int) -> None:
        codes.append(code)
        exited.set()

    watch = Watch({1: ours}, exit_process)
    theirs.send_bytes(b"\0")
    assert watch.healthy and watch.wait_for_end(0.0) == []
    theirs.close()
    assert watch.wait_for_end(30.0) == [1]
    assert not watch.healthy
    assert exited.wait(30.0) and codes == [1]
    watch.close()


def test_a_leader_that_ends_its_followers_is_not_ended_by_them() -> None:
    ours, theirs = Pipe()
    codes: list[int] = []
    watch = Watch({1: ours}, codes.append)
    watch.pause()
    theirs.close()
    watch.close()
    assert codes == []
