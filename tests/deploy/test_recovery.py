"""The supervisor's decisions, without a clock or processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baton.deploy.recovery import PAUSES_S, STABLE_S, Recovery, Seen, restored_pools, step, words

LIVES = Seen(noted=True)
DIED = Seen(noted=True, dead=("gcs_server",))


def test_a_cluster_that_lives_is_left_alone() -> None:
    assert step(Recovery(), LIVES, 5.0) == (Recovery(), "none")


def test_the_first_attempt_begins_at_once_when_a_vital_process_died() -> None:
    state, action = step(Recovery(), DIED, 500.0)
    assert action == "start"
    assert (state.phase, state.attempts, state.dead, state.died_s) == ("starting", 1, ("gcs_server",), 500.0)
    assert step(state, Seen(noted=True, attempt="running"), 501.0) == (state, "none")
    back, action = step(state, Seen(noted=True, attempt="done"), 520.0)
    assert (back.phase, action) == ("watching", "none")
    assert words(back, 600.0) == "gcs_server died 100 s ago; the cluster was back 20 s later"


def test_failed_attempts_back_off_and_stop() -> None:
    state, _ = step(Recovery(), DIED, 1000.0)
    now_s, pauses = 1000.0, []
    while True:
        state, action = step(state, Seen(noted=True, attempt="failed", error="No port."), now_s)
        if action == "exit":
            break
        began_s = now_s
        while action != "start":
            now_s += 1.0
            state, action = step(state, LIVES, now_s)
        pauses.append(now_s - began_s)
    assert tuple(pauses) == PAUSES_S[1:]
    assert state.phase == "gave up"
    expected = "gcs_server died 2 min ago; 7 attempts to restart the cluster failed: No port"
    assert words(state, 1127.0) == expected
    assert step(state, LIVES, now_s + 1000.0) == (state, "exit")


def test_a_cluster_that_dies_again_at_once_is_not_started_at_once() -> None:
    state, _ = step(Recovery(), DIED, 1000.0)
    back, _ = step(state, Seen(noted=True, attempt="done"), 1010.0)
    again, action = step(back, DIED, 1011.0)
    assert (again.phase, action) == ("waiting", "none")
    assert step(again, LIVES, 1010.0 + PAUSES_S[1])[1] == "start"
    stable, action = step(back, DIED, 1010.0 + STABLE_S)
    assert (stable.phase, stable.attempts, action) == ("starting", 1, "start")


def test_a_cluster_that_served_for_as_long_as_the_pause_is_started_at_once() -> None:
    state, _ = step(Recovery(), DIED, 1000.0)
    back, _ = step(state, Seen(noted=True, attempt="done"), 1010.0)
    again, action = step(back, DIED, 1010.0 + PAUSES_S[1])
    assert (again.phase, again.attempts, action) == ("starting", 2, "start")
    assert again.died_s == 1010.0 + PAUSES_S[1]


def test_nothing_is_started_for_a_cluster_that_is_being_ended() -> None:
    for state in (Recovery(), Recovery("waiting", 0.0, 1, ("raylet",)), Recovery("starting", 0.0, 1, ("raylet",))):
        after, action = step(state, Seen(noted=False, dead=("raylet", "gcs_server")), 9.0)
        assert (after.phase, action) == ("ended", "exit")


def test_every_phase_of_a_recovery_is_described() -> None:
    starting = Recovery("starting", 13.0, 2, ("raylet",), 1.0)
    assert words(starting, 21.0) == "raylet died 20 s ago; the cluster is being restarted (attempt 2)"
    waiting = Recovery("waiting", 13.0, 1, ("raylet",), 1.0, "No port.")
    assert words(waiting, 14.0) == ("raylet died 13 s ago; attempt 2 to restart the cluster begins in 1 s: No port")
    assert "the supervisor that was restarting the cluster has ended" in words(starting, 21.0, supervised=False)
    assert words(Recovery(), 3.0) == ""


@given(
    st.fixed_dictionaries({pool: st.integers(0, 3) for pool in ("prefill", "decode", "mixed")}),
    st.lists(st.sampled_from(["prefill-0", "prefill-1", "decode-0", "decode-1", "mixed-0"]), unique=True, min_size=1),
)
def test_a_cluster_comes_back_with_as_many_workers_and_no_pool_of_its_configuration_empty(
    configured: dict[str, int], workers: list[str]
) -> None:
    counts = restored_pools(configured, workers)
    assert sum(counts.values()) == len(workers)
    if len(workers) >= 3:
        assert all(counts[pool] for pool in configured if configured[pool])


def test_a_cluster_that_was_rebalanced_and_scaled_still_has_a_prefill_worker() -> None:
    configured = {"prefill": 1, "decode": 2, "mixed": 0}
    assert restored_pools(configured, ["decode-0", "decode-1", "decode-2"]) == {"prefill": 1, "decode": 2, "mixed": 0}
    assert restored_pools(configured, ["prefill-0", "decode-0", "decode-1"]) == configured
