"""Queue order: fair between tenants, by priority within one, without starvation.

Each tenant has a virtual token counter of the work it was given (Sheng et al. 2024, "Fairness in serving large language
models"): prompt tokens count once, output tokens twice, and the tenant with the least goes first. A tenant that comes
back is lifted to the least of the active ones, so idle time earns no credit. A tenant's own requests go in order of due
time; one step of priority is worth `PRIORITY_S`, so a waiting request eventually overtakes any that came later.
Priorities do not count between tenants: none can starve another.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from baton.router.policy.placement import PlacementInput

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
PRIORITY_S = 5.0
PATIENCE_S = 10.0  # a request without a TTFT objective is due so long after its arrival
MAX_TENANTS = 10_000


@dataclass(eq=False)
class VirtualTokenCounter:
    """The counters. `order` does not change the queue; `charge` adds work to a tenant's counter."""

    _counters: dict[str, float] = field(default_factory=dict)

    def charge(self, tenant: str, prompt_tokens: float = 0, output_tokens: float = 0) -> None:
        """A tenant was given work, or (less than 0) less than it was charged with."""
        given = PROMPT_WEIGHT * prompt_tokens + OUTPUT_WEIGHT * output_tokens
        self._counters[tenant] = self._counters.get(tenant, 0.0) + given

    def on_queued(self, tenant: str, active: Collection[str]) -> None:
        """A request of `tenant` is queued while those of `active` (queued or running) are in the system."""
        if tenant in active:
            return
        if not active:
            self._counters.clear()  # the system is idle: no tenant has waited, so no credit is due
        least = min((self._counters.get(other, 0.0) for other in active), default=0.0)
        self._counters[tenant] = max(self._counters.get(tenant, 0.0), least)
        if len(self._counters) > MAX_TENANTS:
            kept = {*active, tenant}
            self._counters = {name: count for name, count in self._counters.items() if name in kept}

    def order(self, queue: Sequence[PlacementInput]) -> list[PlacementInput]:
        """The queue in placement order."""
        tenants: dict[str, list[PlacementInput]] = {}
        for item in queue:
            tenants.setdefault(item.tenant, []).append(item)
        for waiting in tenants.values():
            waiting.sort(key=_rank)
        if len(tenants) == 1:
            return next(iter(tenants.values()))
        counters = {tenant: self._counters.get(tenant, 0.0) for tenant in tenants}
        ordered: list[PlacementInput] = []
        heads = dict.fromkeys(tenants, 0)
        while heads:
            tenant = min(heads, key=lambda name: (counters[name], name))
            item = tenants[tenant][heads[tenant]]
            ordered.append(item)
            counters[tenant] += PROMPT_WEIGHT * item.num_tokens + OUTPUT_WEIGHT * item.output.remaining()
            heads[tenant] += 1
            if heads[tenant] == len(tenants[tenant]):
                del heads[tenant]
        return ordered


def _rank(item: PlacementInput) -> tuple[float, float, str]:
    due_s = item.arrival_s + PATIENCE_S if item.due_s is None else item.due_s
    return due_s - PRIORITY_S * item.priority, item.arrival_s, item.request_id
