"""When writes to a peer count as stalled."""

from __future__ import annotations

from baton.worker.core.write_watch import LOOK_S, SLOW_BYTES_S, WriteWatch


def _looks(watch: WriteWatch, until_s: float, every_s: float = 0.5) -> list[str]:
    """The stalled peers at the end of looks at regular intervals."""
    stalled: list[str] = []
    now = watch._looked_s
    while now < until_s:
        now += every_s
        stalled = watch.look(now)
    return stalled


def test_a_peer_none_of_whose_writes_ends_is_stalled_until_one_does() -> None:
    watch = WriteWatch(10.0)
    watch.began(1, "a", 0)
    watch.began(2, "a", 0)
    watch.began(3, "b", 0)
    assert _looks(watch, 6.0) == []
    watch.ended(3)
    watch.began(4, "b", 0)
    assert _looks(watch, 10.0) == []
    assert _looks(watch, 10.5) == ["a"]
    watch.began(5, "a", 0)  # excuses nothing
    assert _looks(watch, 11.0) == ["a"]
    watch.ended(1)
    assert _looks(watch, 12.0) == []


def test_a_large_write_has_the_time_that_a_slow_link_takes() -> None:
    watch = WriteWatch(10.0)
    watch.began(1, "a", round(20 * SLOW_BYTES_S))
    assert _looks(watch, 30.0) == []
    assert _looks(watch, 30.5) == ["a"]


def test_a_long_step_without_looks_hardly_counts() -> None:
    watch = WriteWatch(10.0)
    watch.began(1, "a", 0)
    assert watch.look(60.0) == []
    assert watch.look(120.0) == []
    assert _looks(watch, 120.0 + 10.0 - 2 * LOOK_S) == []
    assert _looks(watch, 120.5 + 10.0 - 2 * LOOK_S) == ["a"]


def test_without_a_limit_it_waits_for_ever() -> None:
    watch = WriteWatch(0.0)
    watch.began(1, "a", 0)
    assert _looks(watch, 1000.0) == []
