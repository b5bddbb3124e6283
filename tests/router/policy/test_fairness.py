"""Tenants share the capacity, a tenant's own requests are ordered by due time, and no request starves."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.protocol.request import Objectives
from baton.router.policy import fairness
from baton.router.policy.fairness import OUTPUT_WEIGHT, PATIENCE_S, PRIORITY_S, PROMPT_WEIGHT, VirtualTokenCounter
from baton.router.policy.output_length import EDGES, point
from baton.router.policy.placement import PlacementInput

OUTPUTS = [edge for edge in EDGES if 20 <= edge <= 500]


def item(request_id: str, tenant: str = "", tokens: int = 100, **other: object) -> PlacementInput:
    return PlacementInput(request_id, tokens, tenant=tenant, **other)  # type: ignore[arg-type]


def ids(queue: list[PlacementInput]) -> list[str]:
    return [one.request_id for one in queue]


def weight(one: PlacementInput) -> float:
    return PROMPT_WEIGHT * one.num_tokens + OUTPUT_WEIGHT * one.output.remaining()


def serve(counter: VirtualTokenCounter, queue: list[PlacementInput]) -> PlacementInput:
    """Give the first in line all it asks for."""
    first = counter.order(queue)[0]
    counter.charge(first.tenant, first.num_tokens, round(first.output.remaining()))
    return first


@pytest.mark.parametrize("seed", range(5))
def test_two_tenants_with_endless_work_get_the_same_up_to_one_request(seed: int) -> None:
    rng = random.Random(seed)

    def fresh(tenant: str, number: int) -> PlacementInput:
        tokens = rng.randint(10, 300) if tenant == "small" else rng.randint(1000, 5000)
        return item(f"{tenant} {number}", tenant, tokens, output=point(rng.choice(OUTPUTS)), arrival_s=float(number))

    counter = VirtualTokenCounter()
    queue = [fresh(tenant, number) for tenant in ("small", "large") for number in range(3)]
    given_to = {"small": 0.0, "large": 0.0}
    largest = 0.0
    for number in range(3, 1000):
        largest = max(largest, *map(weight, queue))
        first = serve(counter, queue)
        given_to[first.tenant] += weight(first)
        queue[queue.index(first)] = fresh(first.tenant, number)
        assert abs(given_to["small"] - given_to["large"]) <= largest


def test_one_pass_over_the_queue_is_as_fair_as_many() -> None:
    queue = [item(f"a{i}", "a", 300, arrival_s=i) for i in range(4)] + [item(f"b{i}", "b", 3000) for i in range(2)]
    ordered = [one.tenant for one in VirtualTokenCounter().order(queue)]
    assert ordered == ["a", "b", "a", "a", "a", "b"]


def test_a_tenant_that_returns_cannot_claim_the_time_it_was_away() -> None:
    counter = VirtualTokenCounter()
    for number in range(50):
        counter.on_queued("busy", ["busy"] if number else [])
        counter.charge("busy", 1000)
    counter.on_queued("back", ["busy"])
    served = []
    queue = [item(f"busy {i}", "busy", 1000) for i in range(10)] + [item(f"back {i}", "back", 1000) for i in range(10)]
    for _ in range(10):
        first = serve(counter, queue)
        queue.remove(first)
        served.append(first.tenant)
    assert served.count("busy") == served.count("back") == 5


def test_going_away_does_not_wipe_out_what_a_tenant_was_given() -> None:
    counter = VirtualTokenCounter()
    counter.on_queued("modest", [])
    counter.on_queued("greedy", ["modest"])
    counter.charge("greedy", 10_000)
    counter.on_queued("greedy", ["modest"])
    assert ids(counter.order([item("g", "greedy"), item("m", "modest")])) == ["m", "g"]


def test_priority_goes_first_within_a_tenant_and_means_nothing_between_tenants() -> None:
    queue = [item("late", "a", priority=0), item("urgent", "a", priority=1), item("other", "b", tokens=50)]
    ordered = ids(VirtualTokenCounter().order(queue))
    assert ordered.index("urgent") < ordered.index("late")
    counter = VirtualTokenCounter()
    counter.charge("a", 1000)
    assert ids(counter.order(queue))[0] == "other"


def test_who_waits_overtakes_any_priority_that_comes_later() -> None:
    def first(arrival_s: float) -> str:
        return ids(VirtualTokenCounter().order([item("old"), item("new", priority=3, arrival_s=arrival_s)]))[0]

    assert first(3 * PRIORITY_S - 1) == "new"
    assert first(3 * PRIORITY_S + 1) == "old"


def test_requests_go_in_the_order_they_are_due() -> None:
    relaxed = item("relaxed", objectives=Objectives(ttft_s=PATIENCE_S + 1))
    silent = item("silent")
    tight = item("tight", arrival_s=PATIENCE_S - 2, objectives=Objectives(ttft_s=1.0))
    assert ids(VirtualTokenCounter().order([relaxed, silent, tight])) == ["tight", "silent", "relaxed"]


QUEUE = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 50), st.integers(-2, 2), st.sampled_from([0.0, 1.0, 7.0])),
    max_size=12,
)


@given(QUEUE, st.randoms(use_true_random=False), st.dictionaries(st.sampled_from("abc"), st.integers(0, 200)))
def test_the_order_does_not_depend_on_the_order_of_the_queue(
    drawn: list[tuple[str, int, int, float]], rng: random.Random, charged: dict[str, int]
) -> None:
    queue = [
        item(f"r{number:02}", tenant, tokens, priority=priority, arrival_s=arrival_s)
        for number, (tenant, tokens, priority, arrival_s) in enumerate(drawn)
    ]
    counter = VirtualTokenCounter()
    for tenant, tokens in charged.items():
        counter.charge(tenant, tokens)
    ordered = ids(counter.order(queue)) if queue else []
    assert sorted(ordered) == ids(queue)
    rng.shuffle(queue)
    assert not queue or ids(counter.order(queue)) == ordered


def test_an_empty_queue_has_an_order_too() -> None:
    assert VirtualTokenCounter().order([]) == []


def test_only_so_many_tenants_are_remembered_and_active_ones_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "MAX_TENANTS", 10)
    counter = VirtualTokenCounter()
    counter.charge("active", 500)
    for number in range(50):
        counter.on_queued(f"tenant {number}", ["active"])
        assert len(counter._counters) <= 11
    assert counter._counters["active"] == 500
