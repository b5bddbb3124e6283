"""The pool planner: what it advises follows from demand and speed, and it does not waver."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.latency_model import StepCosts
from baton.router.policy.output_length import point
from baton.router.policy.placement import PlacementInput
from baton.router.policy.planner.pool_planner import Advice, Demand, PoolPlanner, Projection, planned_batch
from tests.router.policy.clusters import cluster_of, decode, occupy

TPOT_S = 0.05
RATES = st.floats(0.01, 500.0)
TOKENS = st.integers(1, 200_000)


def names(prefill: int, decode: int) -> list[str]:
    return [f"prefill-{index}" for index in range(prefill)] + [f"decode-{index}" for index in range(decode)]


def fed(rate_s: float, prompt: int, answer: int, seconds: float = 60.0, tpot_s: float | None = TPOT_S) -> PoolPlanner:
    """A planner that has seen requests come evenly."""
    planner = PoolPlanner()
    for index in range(min(int(rate_s * seconds), 3000) + 1):
        planner.on_arrival(prompt, prompt, answer, tpot_s, index / rate_s)
    return planner


def advise(planner: PoolPlanner, state: ClusterState, now: float = 60.0) -> Advice:
    """Under a placement that hands every request over."""
    advice = planner.advise(state, (), 1.0, now, local=False)
    assert advice is not None
    return advice


def test_it_knows_nothing_before_anything_came() -> None:
    assert PoolPlanner().advise(cluster_of("prefill-0", "decode-0"), (), 1.0, 5.0, True) is None


def test_long_prompts_want_prefill_workers_and_long_answers_decode_workers() -> None:
    state = cluster_of(*names(4, 4))
    prompts = advise(fed(10.0, 5000, 20), state)
    answers = advise(fed(20.0, 100, 400), state)
    assert (prompts.prefill, prompts.decode) == (7, 1)
    assert (answers.prefill, answers.decode) == (1, 7)


def test_it_expects_the_tokens_that_came() -> None:
    advice = advise(fed(10.0, 800, 50), cluster_of(*names(2, 2)))
    assert advice.prompt_tokens_per_s == pytest.approx(8000, rel=0.05)
    assert advice.output_tokens_per_s == pytest.approx(500, rel=0.05)


def test_longer_answers_than_predicted_count_as_they_are() -> None:
    planner, state = fed(10.0, 100, 100), cluster_of(*names(2, 2))
    drifted = planner.advise(state, (), 3.0, 60.0, local=False)
    assert drifted is not None
    assert drifted.output_tokens_per_s == pytest.approx(3 * advise(planner, state).output_tokens_per_s)


def test_a_cluster_with_time_to_spare_stays_as_it_is() -> None:
    state = cluster_of(*names(1, 7))
    advice = advise(fed(1.0, 5000, 20), state)
    assert (advice.prefill, advice.decode) == (1, 7)
    assert "all is well" in advice.why


def test_what_waits_counts_beside_what_comes() -> None:
    planner, state = fed(2.0, 2000, 200), cluster_of(*names(2, 2))
    before = advise(planner, state)
    for _ in range(40):
        for worker in ("prefill-0", "prefill-1"):
            occupy(state, worker, 2.0)
    assert advise(planner, state, 0.0).prefill > before.prefill
    queue = [PlacementInput(f"q{index}", 2000, output=point(200)) for index in range(300)]
    queued = planner.advise(cluster_of(*names(2, 2)), queue, 1.0, 0.0, local=False)
    assert queued is not None
    assert queued.prefill >= before.prefill


def test_sequences_that_run_keep_decode_workers() -> None:
    planner, state = fed(5.0, 4000, 10), cluster_of(*names(2, 6))
    idle = advise(planner, state)
    for index in range(6):
        decode(state, f"decode-{index}", 45, TPOT_S)
    assert advise(planner, state).decode > idle.decode


def test_a_dear_switch_is_not_made_for_little() -> None:
    state, planner = cluster_of(*names(3, 5)), fed(10.0, 4000, 150)
    assert advise(planner, state).prefill != 3
    planner.switch_s = 1000.0
    assert advise(planner, state).prefill == 3


def test_an_empty_pool_is_filled() -> None:
    advice = advise(fed(10.0, 100, 100), cluster_of(*names(0, 4)))
    assert (advice.prefill, advice.decode) == (1, 3)
    assert "a pool is empty" in advice.why


def test_spare_time_of_decode_workers_counts_for_prompts() -> None:
    assert Projection(4.0, 1.0, spare=0.0).load(1, 7) == 4.0
    assert Projection(4.0, 1.0, spare=0.7).load(1, 7) < 1.0
    assert Projection(0.1, 6.0, spare=0.7).load(1, 7) == pytest.approx(6 / 7)


def test_the_planned_batch_keeps_objective_and_memory() -> None:
    costs = StepCosts(5e-3, 0.0, 0.0, 1e-3, 0.0)
    assert planned_batch(costs, 100.0, 0.025, 10**9, 1000) == pytest.approx(20)
    assert planned_batch(costs, 100.0, float("inf"), 1000, 1000) == pytest.approx(9)
    assert planned_batch(costs, 100.0, 0.001, 10**9, 1000) == 1


def test_chance_does_not_move_the_prediction_and_a_shift_does() -> None:
    rng, demand, now = random.Random(0), Demand(), 0.0
    while now < 300.0:
        now += rng.expovariate(10.0)
        demand.add((1, rng.expovariate(1 / 1000), 0, 100, 0, 0, 0), now)
    before = demand.rates(now)[1]
    assert before == pytest.approx(10_000, rel=0.15)
    while now < 310.0:
        now += rng.expovariate(40.0)
        demand.add((1, rng.expovariate(1 / 1000), 0, 100, 0, 0, 0), now)
    assert demand.rates(now)[1] > 2 * before


@settings(deadline=None, max_examples=200)
@given(
    rate=RATES, prompt=TOKENS, answer=TOKENS, prefill=st.integers(0, 9), decoding=st.integers(0, 9),
    tpot_s=st.none() | st.floats(1e-4, 10.0), local=st.booleans(), drift=st.floats(0.01, 100.0),
    queued=st.integers(0, 50), now=st.floats(0.0, 1e5),
)  # fmt: skip
def test_the_advice_empties_no_pool_and_loses_no_worker(
    rate: float, prompt: int, answer: int, prefill: int, decoding: int, tpot_s: float | None, local: bool,
    drift: float, queued: int, now: float,
) -> None:  # fmt: skip
    planner, state = PoolPlanner(), cluster_of(*names(prefill, decoding))
    for index in range(20):
        planner.on_arrival(prompt, max(1, prompt // 2), answer, tpot_s, index / rate)
    for index in range(decoding):
        decode(state, f"decode-{index}", index, tpot_s, tokens=500)
    queue = [PlacementInput(f"q{index}", prompt) for index in range(queued)]
    advice = planner.advise(state, queue, drift, now, local)
    if prefill + decoding < 2:
        assert advice is None
        return
    if advice is not None:
        assert min(advice.prefill, advice.decode) >= 1
        assert advice.prefill + advice.decode == prefill + decoding
        assert np.isfinite([advice.prompt_tokens_per_s, advice.output_tokens_per_s]).all()
        assert advice.why
