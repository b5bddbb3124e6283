"""Prices of a whole queue are those of its requests one by one, also after some of them were placed."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol.request import Objectives
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.output_length import point
from baton.router.policy.placement import PlacementInput
from baton.router.policy.predicted_latency import Schedule
from baton.router.policy.prices import Picture, Prices, price
from tests.router.policy.clusters import cache, cluster_of, decode, fill, occupy

PREFIX = tuple(range(100, 160))  # pages of 960 tokens
COLUMNS = ("cached", "compute_s", "step_s", "prefill", "local", "decode", "start_s")


def same(one: Prices, other: Prices, index: int) -> bool:
    """Whether the only request of `other` has the prices of the one at `index`."""
    return all(np.array_equal(getattr(one, name)[index], getattr(other, name)[0]) for name in COLUMNS)


def any_queue(roles: list[str], rng: random.Random) -> tuple[ClusterState, list[PlacementInput]]:
    """A cluster in some state, and a queue of requests."""
    names = [f"{role}-{number}" for number, role in enumerate(roles)]
    state = cluster_of(*names, num_pages=rng.choice([100, 1000]))
    for name in names:
        occupy(state, name, rng.choice([0.0, 0.2]))
        if not name.startswith("prefill"):
            decode(state, name, rng.randrange(20), rng.choice([None, 0.02, 0.05]))
        cache(state, name, PREFIX[: rng.randrange(60)])
        if rng.random() < 0.2:
            fill(state, name, rng.randrange(80))
    queue = [
        PlacementInput(
            f"r{number}",
            rng.choice([5, 300, 1000, 8000]),
            PREFIX[: rng.randrange(60)],
            point(160),
            Objectives(1.0, rng.choice([None, 1e-4, 0.02, 0.05])),
            resumed=rng.random() < 0.3,
        )
        for number in range(rng.randrange(1, 6))
    ]
    return state, queue


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(["prefill", "decode", "mixed"]), min_size=1, max_size=6), st.randoms())
def test_a_queue_is_priced_as_its_requests_one_by_one_after_every_placement(
    roles: list[str], rng: random.Random
) -> None:
    state, queue = any_queue(roles, rng)
    rows = [view.row for view in state.workers.values()]
    picture = Picture(state.table, 0.0)
    prices = price(queue, state, picture, refuses=True)
    for _ in range(4):
        for index, item in enumerate(queue):
            assert same(prices, price([item], state, picture, refuses=True), index)
        target = rng.choice(rows)
        picture.take_prompt(rng.choice(rows), 100, 0.1)
        picture.take_sequence(target, 100, 300)
        prices.update(target)
    assert np.array_equal(state.table.decodes, [len(state.workers[n].running) if n else 0 for n in state.table.names])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(["prefill", "decode", "mixed"]), min_size=1, max_size=6), st.randoms())
def test_the_worker_that_would_answer_first_is_the_one_that_a_look_at_all_finds(
    roles: list[str], rng: random.Random
) -> None:
    state, queue = any_queue(roles, rng)
    picture = Picture(state.table, 0.0)
    schedule = Schedule(queue, state, picture, price(queue, state, picture, refuses=True))
    for _ in range(6):
        for index in range(len(queue)):
            ttft_s = picture.table.handicap * schedule.ttft_s(index)
            assert ttft_s[schedule.first(index)] == ttft_s.min()
        index = rng.randrange(len(queue))
        row = schedule.first(index)
        if schedule.prices.start_s[index, row] == np.inf:
            return
        match rng.randrange(3):
            case 0:
                schedule.plan(index, row)
            case 1:
                schedule.give_way(index, row)
            case _:
                schedule.place(index, row)
                schedule.any_room()
