"""Output lengths: sensible before anything is known, right where answers repeat, honest about their spread."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baton.router.policy import output_length
from baton.router.policy.output_length import BROAD_SAMPLES, OutputLength, Prediction, chain_nodes

LIMIT = 4096
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def predict(predictor: OutputLength, nodes: tuple[int, ...] = (), tenant: str = "") -> Prediction:
    return predictor.predict(nodes, tenant, 512 * len(nodes) + 100, LIMIT)


def taught(lengths: list[int], nodes: tuple[int, ...] = (), tenant: str = "") -> OutputLength:
    """A predictor that saw these answers to one prompt."""
    predictor = OutputLength()
    for length in lengths:
        predictor.observe(predict(predictor, nodes, tenant), length)
    return predictor


def test_before_anything_was_seen_the_prior_answers_within_the_limit() -> None:
    distribution = OutputLength().predict((), "", 100, 50).distribution
    assert 1 <= distribution.median <= distribution.quantile(0.9) <= 50
    assert 1.0 <= distribution.remaining() <= 50


def test_answers_of_all_requests_are_what_an_unknown_prompt_expects() -> None:
    rng = random.Random(0)
    predictor = taught([int(rng.lognormvariate(5.0, 0.3)) + 1 for _ in range(500)])
    distribution = predict(predictor, (1, 2, 3), "someone new").distribution
    assert distribution.median == pytest.approx(148, rel=0.15)


def test_a_conversation_that_always_answers_alike_is_predicted_so() -> None:
    rng = random.Random(0)
    predictor = OutputLength()
    for turn in range(600):
        other = predict(predictor, (1, 1000 + turn))
        predictor.observe(other, rng.randint(10, 2000))
        if turn % 20 == 0:
            predictor.observe(predict(predictor, (1, 7)), 300)
    known, unknown = predict(predictor, (1, 7)).distribution, predict(predictor, (1, 8)).distribution
    assert known.median == pytest.approx(300, rel=0.1)
    assert unknown.quantile(0.8) - unknown.quantile(0.2) > 4 * (known.quantile(0.8) - known.quantile(0.2))


def test_a_prefix_that_many_share_becomes_a_context_of_its_own() -> None:
    predictor = OutputLength()
    for number in range(2 * BROAD_SAMPLES):
        for system, length in ((1, 20), (2, 900)):
            predictor.observe(predict(predictor, (system, 100 + 2 * number + system)), length)
    assert predict(predictor, (1, 5000)).distribution.median == pytest.approx(20, rel=0.2)
    assert predict(predictor, (2, 5001)).distribution.median == pytest.approx(900, rel=0.2)


def test_tenants_are_told_apart() -> None:
    predictor = OutputLength()
    for _ in range(300):
        predictor.observe(predict(predictor, (), "brief"), 10)
        predictor.observe(predict(predictor, (), "wordy"), 1000)
    assert predict(predictor, (), "brief").distribution.median < 20
    assert predict(predictor, (), "wordy").distribution.median > 500


@pytest.mark.parametrize("seed", range(4))
def test_stated_quantiles_hold_while_the_answers_drift(seed: int) -> None:
    """Of answers that grow fourfold over the run, of two kinds of prompts, with surprises."""
    rng = random.Random(seed)
    predictor = OutputLength()
    covered = []
    for number in range(4000):
        system = rng.randrange(2)
        prediction = predict(predictor, (system, 10 + number))
        length = int(100 * (1 + 3 * number / 4000) * (1 + 2 * system) * rng.lognormvariate(0.0, 0.7)) + 1
        covered.append(length <= prediction.distribution.quantile(0.9))
        predictor.observe(prediction, length)
    assert 0.85 <= np.mean(covered[500:]) <= 0.95


def test_memory_is_bounded_and_the_least_recently_used_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_length, "MAX_NODES", 20)
    monkeypatch.setattr(output_length, "MAX_LEVELS", 12)
    predictor = OutputLength()
    for number in range(200):
        predictor.observe(predict(predictor, (5, 10 + number), f"tenant {number}"), number + 1)
        assert len(predictor._nodes) <= 20
        assert len(predictor._levels) <= 12
    assert predictor._nodes[5][0] == 200
    assert 10 not in predictor._nodes
    assert "" in predictor._levels


def test_what_is_loaded_predicts_as_what_was_dumped() -> None:
    predictor = taught([100] * 50, tenant="a")
    predictor.observe(predict(predictor, (), "b"), 900)
    loaded = OutputLength.loads(predictor.dumps())
    for tenant in ("a", "b", "c"):
        before, after = (predict(one, (), tenant).distribution for one in (predictor, loaded))
        assert after.shares == pytest.approx(before.shares, abs=1e-4)
        assert [after.quantile(share) for share in (0.1, 0.5, 0.9)] == pytest.approx(
            [before.quantile(share) for share in (0.1, 0.5, 0.9)], abs=2
        )


def _check_loads(text: str) -> None:
    try:
        predictor = OutputLength.loads(text)
    except ValueError:
        return
    distribution = predict(predictor, (1, 2)).distribution
    assert 1 <= distribution.median <= LIMIT
    predictor.observe(predict(predictor), 100)


@given(st.text(max_size=60) | JSON.map(json.dumps))
@example("[" * 100_000)
def test_what_is_no_dump_is_refused_as_a_wrong_value(text: str) -> None:
    _check_loads(text)


@settings(deadline=None, max_examples=40)
@given(
    levels=JSON | st.dictionaries(st.text(max_size=4), st.dictionaries(st.text("-19", max_size=3), JSON, max_size=3)),
    ranks=JSON | JSON.map(lambda value: [value] * 100) | st.just([1.0] * 100) | st.just([0.0] * 100),
)
@example(levels={"": {"3": 10**400}}, ranks=[1.0] * 100)
@example(levels={"": {"3": float("nan")}}, ranks=[1.0] * 100)
@example(levels={"": {"3": -1.0}}, ranks=[1.0] * 100)
@example(levels={}, ranks=[float("inf")] * 100)
@example(levels={}, ranks=[10**400] * 100)
def test_a_damaged_dump_is_refused_or_still_predicts(levels: object, ranks: object) -> None:
    _check_loads(json.dumps({"version": 1, "levels": levels, "ranks": ranks}))


def test_a_chain_has_a_node_for_every_512_tokens() -> None:
    assert chain_nodes(range(100), 16) == (31, 63, 95)
    assert chain_nodes(range(3), 512) == (0, 1, 2)
    assert chain_nodes(range(3), 1024) == (0, 1, 2)
    assert chain_nodes((), 16) == ()
