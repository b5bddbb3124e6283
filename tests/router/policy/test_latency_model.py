"""The latency model finds each worker's own costs from what it reports, and stays sane on what it never saw."""

from __future__ import annotations

import random
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol.worker import RoleName, StepSample, WorkerLoad
from baton.router.policy.latency_model import DEFAULT_COSTS, LatencyModel, StepCosts
from tests.router.policy.clusters import cluster_of

TRUE = StepCosts(4e-3, 3e-5, 2e-9, 8e-5, 3e-8)


def steps(costs: StepCosts, count: int, seed: int = 0, outliers: float = 0.0, noise: float = 0.05) -> list[StepSample]:
    """Measured steps of a worker: prefill alone, decode alone and both."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        new = rng.choice([0, rng.randint(1, 4096)])
        pairs = int(new * (rng.randint(0, 16_000) + new / 2))
        decodes = rng.randint(0 if new else 1, 128)
        context = decodes * rng.randint(100, 8000)
        seconds = costs.seconds(new, pairs, decodes, context) * rng.lognormvariate(0.0, noise)
        if rng.random() < outliers:
            seconds *= 10
        made.append(StepSample(new, pairs, decodes, context, seconds))
    return made


def error(model: LatencyModel, costs: StepCosts) -> float:
    """Mean relative error over fresh steps without noise."""
    fresh = steps(costs, 300, seed=99, noise=0.0)
    return sum(abs(predicted(model, step) / step.seconds - 1) for step in fresh) / len(fresh)


def predicted(model: LatencyModel, step: StepSample) -> float:
    return model.costs.seconds(step.prefill_tokens, step.prefill_pairs, step.decodes, step.context_tokens)


def learned(samples: list[StepSample]) -> LatencyModel:
    model = LatencyModel()
    for sample in samples:
        model.observe(sample)
    return model


@pytest.mark.parametrize("seed", range(5))
def test_the_costs_are_recovered_from_noisy_steps_with_outliers(seed: int) -> None:
    model = learned(steps(TRUE, 3000, seed, outliers=0.02))
    assert error(model, TRUE) < 0.08
    for found, true in zip(astuple(model.costs), astuple(TRUE), strict=True):
        assert found == pytest.approx(true, rel=0.35)


def test_sums_of_steps_teach_what_the_steps_do() -> None:
    single, together = LatencyModel(), LatencyModel()
    decoding = [step for step in steps(TRUE, 2000, noise=0.02) if not step.prefill_tokens]
    for start in range(0, len(decoding), 10):
        few = decoding[start : start + 10]
        for step in few:
            single.observe(step)
        together.observe(sum(few[1:], start=few[0]))
    assert together.samples == single.samples
    fresh = [step for step in steps(TRUE, 300, seed=7, noise=0.0) if not step.prefill_tokens]
    for model in (single, together):
        assert sum(abs(predicted(model, step) / step.seconds - 1) for step in fresh) / len(fresh) < 0.05


def test_a_hundred_steps_are_worth_more_than_the_prior() -> None:
    model = learned(steps(TRUE, 100))
    assert error(model, TRUE) < 0.1 < error(LatencyModel(), TRUE)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.builds(
            StepSample,
            st.integers(0, 10_000),
            st.integers(0, 10**9),
            st.integers(0, 512),
            st.integers(0, 10**7),
            st.floats(-1.0, 1e4) | st.just(float("nan")) | st.just(float("inf")),
        ),
        max_size=60,
    )
)
def test_no_step_however_odd_makes_a_cost_negative_or_undefined(samples: list[StepSample]) -> None:
    costs = astuple(learned(samples).costs)
    assert all(0.0 <= cost < float("inf") for cost in costs)


def test_what_was_never_measured_keeps_the_prior() -> None:
    only_decodes = [
        StepSample(0, 0, one.decodes or 1, one.context_tokens, one.seconds)
        for one in steps(StepCosts(4e-3, 0.0, 0.0, 8e-5, 3e-8), 2000)
        if not one.prefill_tokens
    ]
    costs = learned(only_decodes).costs
    assert costs.prefill_token_s == DEFAULT_COSTS.prefill_token_s
    assert costs.prefill_pair_s == DEFAULT_COSTS.prefill_pair_s


def test_what_is_seen_again_after_a_long_while_is_still_known() -> None:
    model = learned(steps(TRUE, 1000))
    before = model.costs.prefill_token_s
    for step in steps(TRUE, 8000, seed=1):
        if not step.prefill_tokens:
            model.observe(step)
    assert model.costs.prefill_token_s == pytest.approx(before, rel=0.05)


def test_two_workers_learn_their_own_costs() -> None:
    state = cluster_of("prefill-0", "prefill-1", costs=DEFAULT_COSTS)
    slow = StepCosts(*(2 * cost for cost in astuple(TRUE)))
    for name, costs in (("prefill-0", TRUE), ("prefill-1", slow)):
        for number in range(20):
            samples = tuple(steps(costs, 50, number))
            state.report(WorkerLoad(name, RoleName.PREFILL, 0, number, 1000, 1000, 0, steps=samples), 0.0)
        assert error(state.workers[name].latency, costs) < 0.1
    rows = [state.workers[name].row for name in ("prefill-0", "prefill-1")]
    fast_s, slow_s = (float(state.table.prefill_token_s[row]) for row in rows)
    assert slow_s == pytest.approx(2 * fast_s, rel=0.25)


@pytest.mark.parametrize("decodes_only", [False, True])
def test_a_worker_that_slows_down_is_followed_within_a_few_hundred_steps(decodes_only: bool) -> None:
    throttled = StepCosts(*(1.6 * cost for cost in astuple(TRUE)))
    before, after, fresh = (
        [step for step in steps(costs, count, seed, noise=noise) if not (decodes_only and step.prefill_tokens)]
        for costs, count, seed, noise in ((TRUE, 3000, 0, 0.05), (throttled, 1000, 7, 0.05), (throttled, 300, 99, 0.0))
    )
    model = learned(before + after)
    assert sum(abs(predicted(model, step) / step.seconds - 1) for step in fresh) / len(fresh) < 0.1


def test_prefill_is_priced_chunk_by_chunk_with_attention_over_what_is_cached() -> None:
    costs = StepCosts(1.0, 0.1, 0.01, 0.0, 0.0)
    assert costs.prefill_s(5, 0, 2) == pytest.approx(3 * 1.0 + 5 * 0.1 + 5 * 2.5 * 0.01)
    assert costs.prefill_s(5, 10, 8) == pytest.approx(1.0 + 5 * 0.1 + 5 * 12.5 * 0.01)
