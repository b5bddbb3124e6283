"""Prices of a whole queue are those of its requests one by one, also after some of them were placed."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol.request import Objectives
from baton.router.policy.output_length import point
from baton.router.policy.placement import PlacementInput
from baton.router.policy.prices import Picture, Prices, price
from tests.router.policy.clusters import cache, cluster_of, decode, fill, occupy

PREFIX = tuple(range(100, 160))  # pages of 960 tokens
COLUMNS = ("cached", "compute_s", "step_s", "prefill", "local", "decode", "start_s")


def same(one: Prices, other: Prices, index: int) -> bool:
    """Whether the only request of `other` has the prices of the one at `index`."""
    return all(np.array_equal(getattr(one, name)[index], getattr(other, name)[0]) for name in COLUMNS)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(["prefill", "decode", "mixed"]), min_size=1, max_size=6), st.randoms())
def test_a_queue_is_priced_as_its_requests_one_by_one_after_every_placement(
    roles: list[str], rng: random.Random
) -> None:
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
    picture = Picture(state.table, 0.0)
    picture.branch()
    prices = price(queue, state, picture, refuses=True)
    for _ in range(4):
        for index, item in enumerate(queue):
            assert same(prices, price([item], state, picture, refuses=True), index)
        target = rng.randrange(len(names))
        picture.take(rng.randrange(len(names)), target, 100, 300, 0.1)
        prices.update(target)
    assert np.array_equal(state.table.decodes, [len(state.workers[n].running) if n else 0 for n in state.table.names])
