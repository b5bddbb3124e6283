"""Early refusal: a request that cannot meet its objectives is refused at once, with a retry delay."""

from __future__ import annotations

from baton.protocol.errors import Overloaded
from baton.router.policy.placement import PlacementInput


def refuse_late(item: PlacementInput, wait_s: float, compute_s: float) -> Overloaded:
    """The refusal of a request whose first token would come after its objective. `wait_s` is the queue's length."""
    objective_s = item.objectives.ttft_s or 0.0
    if compute_s > objective_s:
        # No amount of waiting helps: the prompt alone takes longer.
        return Overloaded(
            f"The prompt alone takes {compute_s:.2f} s here, the TTFT objective is {objective_s:.2f} s: "
            "ask for a longer one, or send a shorter prompt."
        )
    retry_s = max(wait_s, 0.1)
    return Overloaded(
        f"The first token would come after the TTFT objective of {objective_s:.2f} s; try again in {retry_s:.1f} s.",
        retry_after_s=retry_s,
    )


def refuse_slow(item: PlacementInput, tpot_s: float) -> Overloaded:
    """The refusal of a request whose TPOT objective no worker meets, even when idle."""
    objective_s = item.objectives.tpot_s or 0.0
    return Overloaded(
        f"A token takes {1000 * tpot_s:.1f} ms here at best, the TPOT objective is {1000 * objective_s:.1f} ms: "
        "ask for a longer one."
    )


def refuse_full(queued: int, oldest_wait_s: float) -> Overloaded:
    """The refusal when the queue is full. The retry delay is about as long as the oldest request has waited."""
    retry_s = max(oldest_wait_s, 1.0)
    return Overloaded(f"{queued} requests are already queued; try again in {retry_s:.1f} s.", retry_after_s=retry_s)
