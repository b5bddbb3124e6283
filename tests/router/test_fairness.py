"""Fairness between tenants."""

from __future__ import annotations

from baton.router.policy.fairness import VirtualTokenCounter
from baton.router.policy.placement import PlacementInput


def test_past_service_is_no_debt_after_an_idle_moment() -> None:
    counter = VirtualTokenCounter()
    counter.on_queued("old", [])
    counter.charge("old", prompt_tokens=10_000_000)
    counter.on_queued("new", [])  # everything of "old" has ended
    counter.on_queued("old", ["new"])
    queue = [PlacementInput(f"new{number}", 100, tenant="new") for number in range(100)]
    order = counter.order([*queue, PlacementInput("old", 100, tenant="old")])
    assert [item.tenant for item in order].index("old") < 3
