"""Baton's placement sends each request where it is answered first, and keeps what others were promised.

The workers' figures are round (clusters.py): a prompt token takes 0.1 ms, a step 1 ms, a decoding sequence 1 ms of it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.placement import Place, PlacementInput, Refuse
from baton.router.policy.predicted_latency import PredictedLatency
from baton.router.policy.worker_table import CHUNKS_AHEAD
from tests.router.policy.clusters import (
    CHUNK,
    MIXED_CHUNK,
    PREFIX,
    cache,
    cluster_of,
    decode,
    fill,
    item,
    occupy,
)

POLICY = PredictedLatency()


def placed(state: ClusterState, *queue: PlacementInput, policy: PredictedLatency = POLICY) -> dict[str, str]:
    """Who goes where; a refused request goes to "refused"."""
    verdicts = policy.decide(queue, state, 0.0)
    return {one.request_id: one.decision.prefill if isinstance(one, Place) else "refused" for one in verdicts}


def refusal(state: ClusterState, *queue: PlacementInput, now: float = 0.0) -> Refuse:
    (verdict,) = POLICY.decide(queue, state, now)
    assert isinstance(verdict, Refuse)
    return verdict


def test_the_worker_with_the_prefix_is_taken_even_when_it_is_the_busier_one() -> None:
    state = cluster_of("prefill-0", "prefill-1", "decode-0")
    cache(state, "prefill-1", PREFIX)
    occupy(state, "prefill-1", 0.05)
    (verdict,) = POLICY.decide([item(page_keys=PREFIX)], state, 0.0)
    assert isinstance(verdict, Place)
    assert verdict.decision.prefill == "prefill-1"
    assert verdict.decision.decode == "decode-0"
    chosen, other = verdict.decision.candidates[:2]
    assert (chosen.worker, chosen.uncached_tokens, other.uncached_tokens) == ("prefill-1", 40, 1000)
    assert chosen.ttft_s == pytest.approx(0.05 + 0.005, abs=1e-3)
    assert other.ttft_s == pytest.approx(0.101)
    assert "40 of 1000 tokens" in verdict.decision.why


def test_a_prefix_is_computed_again_elsewhere_when_its_worker_is_busy_for_longer() -> None:
    state = cluster_of("prefill-0", "prefill-1", "decode-0")
    cache(state, "prefill-1", PREFIX)
    occupy(state, "prefill-1", 0.12)
    assert placed(state, item(page_keys=PREFIX)) == {"r": "prefill-0"}


def test_a_burst_over_one_hot_prefix_spreads() -> None:
    state = cluster_of("prefill-0", "prefill-1", "decode-0")
    cache(state, "prefill-1", PREFIX)
    burst = [item(f"r{number:02}", page_keys=PREFIX, tokens=1200) for number in range(8)]
    workers = list(placed(state, *burst).values())
    assert workers[0] == "prefill-1"
    assert workers.count("prefill-1") > workers.count("prefill-0") > 0


def test_requests_wait_here_while_every_worker_has_two_chunks() -> None:
    state = cluster_of("prefill-0", "decode-0")
    decode(state, "decode-0", 30, tpot_s=0.04)
    state.assign("prefill-0", "big", CHUNKS_AHEAD * CHUNK, (), 0.0)
    assert placed(state, item()) == {}
    state.unassign("prefill-0", "big", 0.0)
    assert placed(state, item()) == {"r": "prefill-0"}


def test_a_decode_worker_serves_the_whole_request_when_it_answers_clearly_first() -> None:
    state = cluster_of("prefill-0", "decode-0")
    short = item(tokens=200)
    assert placed(state, short) == {"r": "prefill-0"}
    occupy(state, "prefill-0", 0.1)
    (verdict,) = POLICY.decide([short], state, 0.0)
    assert isinstance(verdict, Place)
    assert verdict.decision.local
    assert verdict.decision.prefill == "decode-0"
    assert verdict.decision.decode is None


@pytest.mark.parametrize(("tpot_s", "whole"), [(0.05, True), (0.02, False)])
def test_a_chunk_never_breaks_what_a_running_sequence_was_promised(tpot_s: float, whole: bool) -> None:
    state = cluster_of("prefill-0", "decode-0")
    decode(state, "decode-0", 3, tpot_s)
    occupy(state, "prefill-0", 0.15)
    assert placed(state, item(tokens=200)) == {"r": "decode-0" if whole else "prefill-0"}


def test_a_promise_holds_beside_a_sequence_that_was_promised_nothing() -> None:
    state = cluster_of("prefill-0", "decode-0")
    decode(state, "decode-0", 1, tpot_s=0.02)
    decode(state, "decode-0", 1)
    occupy(state, "prefill-0", 0.15)
    assert placed(state, item(tokens=200)) == {"r": "prefill-0"}


def test_beside_sequences_without_promises_a_prompt_of_one_small_chunk_runs_and_no_longer_one() -> None:
    state = cluster_of("prefill-0", "decode-0")
    decode(state, "decode-0", 3)
    occupy(state, "prefill-0", 0.19)
    assert placed(state, item(tokens=MIXED_CHUNK)) == {"r": "decode-0"}
    assert placed(state, item(tokens=MIXED_CHUNK + 1)) == {"r": "prefill-0"}


def test_a_request_that_cannot_be_on_time_is_refused_with_a_time_to_come_again() -> None:
    state = cluster_of("prefill-0", "decode-0")
    occupy(state, "prefill-0", 0.15)
    decode(state, "decode-0", 30, tpot_s=0.04)
    late = refusal(state, item(tokens=1000, ttft_s=0.12, arrival_s=-0.05))
    assert late.error.retry_after_s == pytest.approx(0.15, abs=0.01)
    hopeless = refusal(state, item(tokens=5000, ttft_s=0.1))
    assert hopeless.error.retry_after_s is None


def test_a_request_whose_moment_passes_while_no_worker_has_capacity_is_refused() -> None:
    state = cluster_of("prefill-0", "decode-0")
    state.assign("prefill-0", "big", 3 * CHUNK, (), 0.0)
    decode(state, "decode-0", 30, tpot_s=0.04)
    assert refusal(state, item(ttft_s=0.5), now=0.6).error.retryable
    assert POLICY.decide([item(ttft_s=0.5, resumed=True)], state, 0.6) == []


def test_a_resumed_request_is_placed_however_late_it_is() -> None:
    state = cluster_of("prefill-0", "decode-0")
    assert placed(state, item(ttft_s=0.01, resumed=True)) == {"r": "prefill-0"}


def test_a_late_request_that_still_could_be_on_time_elsewhere_is_not_refused() -> None:
    state = cluster_of("prefill-0", "decode-0")
    occupy(state, "prefill-0", 0.1)
    decode(state, "decode-0", 30, tpot_s=0.04)
    assert placed(state, item(tokens=1000, ttft_s=0.15)) == {"r": "prefill-0"}


def test_a_long_prompt_gives_way_to_shorter_ones_that_then_are_on_time() -> None:
    """All want the busy worker, for its prefix. Behind the long one the fourth short one would be late."""
    state = cluster_of("prefill-0", "prefill-1", "decode-0")
    decode(state, "decode-0", 30, tpot_s=0.04)
    prefix = tuple(range(1000, 1363))  # 5808 tokens
    cache(state, "prefill-1", prefix)
    state.assign("prefill-1", "busy", CHUNKS_AHEAD * CHUNK, (), 0.0)
    long = item("long", 5808 + 1100, ttft_s=0.7, page_keys=prefix)
    short = [item(f"short {number}", 5808 + 800, ttft_s=0.645, page_keys=prefix) for number in range(5)]
    assert placed(state, long) == {}
    assert placed(state, long, *short[:3]) == {}
    assert placed(state, long, *short) == {"long": "prefill-0"}


def test_a_prompt_counts_as_late_when_others_may_fill_up_its_last_step() -> None:
    """Alone it would take 0.1 s; a step that others fill up ends for all of them after 0.1 s."""
    state = cluster_of("prefill-0", "decode-0")
    decode(state, "decode-0", 30, tpot_s=0.04)
    tight = item("tight", 100, ttft_s=0.05)
    easy = [item(f"easy {number}", 100, ttft_s=5.0) for number in range(2)]
    verdicts = PredictedLatency().decide([tight, *easy], state, 0.0)
    assert [verdict.request_id for verdict in verdicts] == ["easy 0", "easy 1", "tight"]


@pytest.mark.parametrize("whose", ["pages", "batch", "tpot"])
def test_without_room_to_decode_a_prompt_with_a_promise_waits(whose: str) -> None:
    state = cluster_of("prefill-0", "decode-0")
    if whose == "pages":
        fill(state, "decode-0", 50)
    elif whose == "batch":
        decode(state, "decode-0", 64, tokens=16)
    else:
        decode(state, "decode-0", 30, tpot_s=1.0)
    assert placed(state, item(tpot_s=0.025)) == {}
    assert placed(state, item()) == {"r": "prefill-0"}


def test_an_objective_that_not_even_an_idle_worker_meets_is_refused_and_not_waited_for() -> None:
    state = cluster_of("prefill-0", "decode-0")
    hopeless = refusal(state, item(tpot_s=1e-3))
    assert hopeless.error.retry_after_s is None
    assert "TPOT" in hopeless.error.message
    assert placed(state, item(tpot_s=1e-3), policy=PredictedLatency(refuse=False)) == {"r": "prefill-0"}
    assert placed(state, item(tpot_s=1e-3, resumed=True)) == {"r": "prefill-0"}


def test_a_request_that_waits_for_room_to_decode_is_refused_when_its_moment_has_passed() -> None:
    state = cluster_of("prefill-0", "decode-0")
    decode(state, "decode-0", 30, tpot_s=1.0)
    waiting = item(tpot_s=0.025, ttft_s=0.5)
    assert POLICY.decide([waiting], state, 0.1) == []
    assert refusal(state, waiting, now=0.6).request_id == "r"


def test_decode_goes_to_the_shortest_step_whose_pages_last_to_the_end() -> None:
    state = cluster_of("prefill-0", "decode-0", "decode-1", num_pages=110)
    decode(state, "decode-0", 2, tokens=600)
    decode(state, "decode-1", 3, tokens=16)
    assert state.workers["decode-0"].peak_pages() <= 110
    assert POLICY.find_decode(item(tokens=300), state, None, 0.0) == "decode-1"
    assert POLICY.find_decode(item(tokens=16), state, None, 0.0) == "decode-0"
    assert POLICY.find_decode(item(tokens=300), state, "decode-1", 0.0) == "decode-0"
    fill(state, "decode-0", 5)
    fill(state, "decode-1", 5)
    assert POLICY.find_decode(item(tokens=300), state, None, 0.0) is None


def test_a_mixed_cluster_and_one_of_decode_workers_alone_serve_whole_requests() -> None:
    for name in ("mixed-0", "decode-0"):
        (verdict,) = POLICY.decide([item()], cluster_of(name), 0.0)
        assert isinstance(verdict, Place)
        assert verdict.decision.local
    assert placed(cluster_of("prefill-0"), item()) == {}
    assert placed(cluster_of(), item()) == {}


def test_equal_workers_are_told_apart_by_the_order_they_came_in() -> None:
    state = cluster_of("prefill-1", "prefill-0", "decode-0", "decode-1")
    assert placed(state, item()) == {"r": "prefill-1"}
    assert POLICY.find_decode(item(), state, None, 0.0) == "decode-0"
    first = POLICY.decide([item(), replace(item(), request_id="s")], state, 0.0)
    assert [one.decision.prefill for one in first if isinstance(one, Place)] == ["prefill-1", "prefill-0"]


def test_freed_pages_matter_only_while_a_worker_lacks_them_for_a_waiting_request() -> None:
    policy, keys = PredictedLatency(), tuple(range(100, 600))
    state = cluster_of("prefill-0", "prefill-1", "decode-0")
    cache(state, "prefill-1", keys[:490])
    occupy(state, "prefill-1", CHUNKS_AHEAD * CHUNK * 1.1e-4)
    waiting = item(tokens=8000, page_keys=keys)
    assert policy.decide([waiting], state, 0.0) == []
    assert not policy.tight
    fill(state, "prefill-0", 3)
    assert policy.decide([waiting], state, 0.0) == []
    assert policy.tight
