"""Requests that no worker can take as they ask are answered, and what fits an empty worker finds it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baton.protocol.errors import Overloaded
from baton.protocol.request import Objectives
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.latency_model import StepCosts
from baton.router.policy.placement import Place, PlacementInput, Refuse
from baton.router.policy.policies import NAMES, make_policy
from baton.router.policy.predicted_latency import PredictedLatency

PAGE_SIZE, NUM_PAGES = 16, 100
# A step takes 10 ms and 1 ms more for every 100 tokens of context.
COSTS = StepCosts(10e-3, 1e-4, 1e-12, 1e-6, 1e-5)


def _state(*roles: RoleName) -> ClusterState:
    state = ClusterState(COSTS)
    for number, role in enumerate(roles):
        layout = PageLayout(NUM_PAGES, 1, PAGE_SIZE, 1, 1, "float32", "model")
        name = f"{role.value}-{number}"
        state.register(WorkerInfo(name, "1", role, 0, Endpoint(name, layout), 512, 8, 128), 0.0)
    return state


SPLIT = (RoleName.PREFILL, RoleName.DECODE)
SLOW = PlacementInput("slow", 1000, objectives=Objectives(60.0, 15e-3))  # needs 20 ms per token even alone


def test_a_prompt_too_long_for_its_tpot_is_refused_at_once() -> None:
    (verdict,) = PredictedLatency().decide([SLOW], _state(*SPLIT), 0.0)
    assert isinstance(verdict, Refuse)
    assert isinstance(verdict.error, Overloaded)
    assert "20.0 ms" in verdict.error.message
    assert "15.0 ms" in verdict.error.message


@pytest.mark.parametrize(
    ("policy", "item"),
    [(PredictedLatency(refuse=False), SLOW), (PredictedLatency(), replace(SLOW, resumed=True))],
    ids=["nothing is refused", "it has begun"],
)
def test_it_is_served_where_it_cannot_be_refused(policy: PredictedLatency, item: PlacementInput) -> None:
    (verdict,) = policy.decide([item], _state(*SPLIT), 0.0)
    assert isinstance(verdict, Place)


def test_a_request_that_no_worker_took_is_refused_when_it_is_late() -> None:
    state = _state(*SPLIT)
    state.reserve("decode-1", "other", NUM_PAGES * PAGE_SIZE)  # full, while the prefill worker has room
    item = PlacementInput("waits", 1000, objectives=Objectives(2.0, 0.05))
    policy = PredictedLatency()
    assert policy.decide([item], state, 1.0) == []
    (verdict,) = policy.decide([item], state, 2.1)
    assert isinstance(verdict, Refuse)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_that_fills_an_empty_worker_to_the_last_page_is_taken(name: str) -> None:
    policy, state = make_policy(name), _state(*SPLIT)
    full = PlacementInput("full", NUM_PAGES * PAGE_SIZE - 1)
    assert policy.find_decode(full, state, None, 0.0) == "decode-1"
    state.reserve("decode-1", "other", 1)
    assert policy.find_decode(full, state, None, 0.0) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_that_a_worker_can_never_hold_is_not_sent_there(name: str) -> None:
    policy, state = make_policy(name), _state(*SPLIT)
    assert policy.find_decode(PlacementInput("huge", NUM_PAGES * PAGE_SIZE + 1), state, None, 0.0) is None
