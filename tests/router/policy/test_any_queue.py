"""Baton's placement of random queues on random clusters."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol.worker import RoleName
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.placement import PlacementInput, Refuse
from baton.router.policy.predicted_latency import PredictedLatency
from tests.router.policy.clusters import PAGE_SIZE, PREFIX, cache, cluster_of, decode, fill, item, occupy

ROLES = st.lists(st.sampled_from(["prefill", "decode", "mixed"]), min_size=1, max_size=6)


def _cluster(roles: Sequence[str], rng: random.Random) -> ClusterState:
    names = [f"{role}-{number}" for number, role in enumerate(roles)]
    state = cluster_of(*names, num_pages=rng.choice([100, 1000]))
    for name in names:
        if rng.random() < 0.5:
            occupy(state, name, rng.uniform(0.0, 0.3))
        if not name.startswith("prefill"):
            decode(state, name, rng.randrange(20), rng.choice([None, 0.02, 0.05]))
        if rng.random() < 0.3:
            cache(state, name, PREFIX[: rng.randrange(60)])
        if rng.random() < 0.2:
            fill(state, name, rng.randrange(80))
    return state


def _queue(rng: random.Random, count: int) -> list[PlacementInput]:
    return [
        item(
            f"r{number}",
            rng.choice([5, 300, 1000, 8000]),
            rng.choice([None, 0.05, 0.3, 3.0]),
            tpot_s=rng.choice([None, 1e-4, 0.02, 0.05]),
            page_keys=PREFIX[: rng.randrange(60)],
            arrival_s=-rng.choice([0.0, 0.1, 1.0]),
            resumed=rng.random() < 0.2,
        )
        for number in range(count)
    ]


@settings(deadline=None, max_examples=150)
@given(ROLES, st.integers(0, 12), st.randoms(use_true_random=False), st.booleans())
def test_verdicts_name_queued_requests_once_and_workers_that_fit(
    roles: list[str], count: int, rng: random.Random, refuse: bool
) -> None:
    state, queue = _cluster(roles, rng), _queue(rng, count)
    waiting = {one.request_id: one for one in queue}
    policy = PredictedLatency(refuse)
    verdicts = policy.decide(queue, state, 0.0)
    assert repr(verdicts) == repr(policy.decide(queue, state, 0.0))
    for verdict in verdicts:
        request = waiting.pop(verdict.request_id)
        if isinstance(verdict, Refuse):
            assert refuse
            assert not request.resumed
            continue
        decision = verdict.decision
        role = state.workers[decision.prefill].load.role
        assert decision.local == (role is not RoleName.PREFILL)
        assert decision.decode is None or state.workers[decision.decode].load.role is RoleName.DECODE
        assert not (decision.local and decision.decode)
        assert decision.prefill == decision.candidates[0].worker
        pages = request.num_tokens // PAGE_SIZE + 1
        assert state.workers[decision.prefill].info.num_pages >= pages - len(request.page_keys)
