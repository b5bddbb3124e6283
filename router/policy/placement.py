"""The interface of placement policies: input, decisions, and the refusals of requests that cannot be served in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from baton.protocol.errors import Overloaded
from baton.protocol.request import Objectives
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.output_length import LengthDistribution, point


@dataclass(frozen=True, slots=True)
class PlacementInput:
    """Placement's view of a request: `num_tokens` to prefill (prompt, and output so far when it continues)."""

    request_id: str
    num_tokens: int
    page_keys: tuple[int, ...] = ()  # of its full pages, see prefix_index.py
    output: LengthDistribution = field(default_factory=lambda: point(256))
    objectives: Objectives = field(default_factory=Objectives)
    arrival_s: float = 0.0
    priority: int = 0
    tenant: str = ""
    resumed: bool = False  # it was sent to a worker before
    prefill_worker: str = ""  # that has the request, once placed
    total_tokens: int = 0  # prompt and the longest output
    gateway: str = ""  # that gets its tokens

    @property
    def due_s(self) -> float | None:
        """When its first token is due, on the router's clock."""
        return None if self.objectives.ttft_s is None else self.arrival_s + self.objectives.ttft_s


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate route of the request, with its predictions."""

    worker: str
    local: bool  # prefill and decode both there, without handoff
    ttft_s: float
    wait_s: float  # of it, until the worker starts
    uncached_tokens: int
    tpot_s: float


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """Where a request's phases run.

    `local` requests stay on `prefill` for both phases. Otherwise `decode` is the worker asked to reserve pages, or
    None when none has capacity yet: prefill starts while the router looks for one.
    """

    prefill: str
    decode: str | None
    local: bool
    why: str
    candidates: tuple[Candidate, ...] = ()  # the best ones, the chosen one first


@dataclass(frozen=True, slots=True)
class Place:
    """Start a queued request on a worker."""

    request_id: str
    decision: RoutingDecision


@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse a request at once because its objectives cannot be met."""

    request_id: str
    error: Overloaded


class Placement(Protocol):
    """Decides over a snapshot of queue and cluster. Deterministic: ties end with the worker's name."""

    @property
    def name(self) -> str: ...

    @property
    def serves_locally(self) -> bool:
        """Whether decode workers may run whole requests while there are prefill workers."""
        ...

    @property
    def scanned(self) -> int:
        """How many requests of the queue one call of `decide` looks at."""
        ...

    @property
    def tight(self) -> bool:
        """Whether a request of the last `decide` found a worker without pages, or without a place in a batch."""
        ...

    def decide(self, queue: Sequence[PlacementInput], state: ClusterState, now: float) -> list[Place | Refuse]:
        """Decisions on queued requests (in queue order), each at most once; empty when all have to wait.

        It is called again after its decisions were carried out if it has not looked at the whole queue.
        """
        ...

    def find_decode(self, item: PlacementInput, state: ClusterState, avoid: str | None, now: float) -> str | None:
        """The decode worker to reserve pages on, other than `avoid`; None while none has capacity."""
        ...


def refuse_late(item: PlacementInput, wait_s: float, compute_s: float) -> Overloaded:
    """The refusal of a request whose first token would come after its objective. `wait_s` is the queue's length."""
    objective_s = item.objectives.ttft_s or 0.0
    if compute_s > objective_s:
        # No amount of waiting helps: the prompt alone takes longer.
        return Overloaded(
            f"The prompt alone takes {compute_s:.2f} s here, the TTFT objective is {objective_s:.2f} s: "
            "ask for a longer one, or send a shorter prompt.",
            cause="ttft_objective",
        )
    retry_s = max(wait_s, 0.1)
    return Overloaded(
        f"The first token would come after the TTFT objective of {objective_s:.2f} s; try again in {retry_s:.1f} s.",
        retry_after_s=retry_s,
        cause="ttft_objective",
    )


def refuse_slow(item: PlacementInput, tpot_s: float) -> Overloaded:
    """The refusal of a request whose TPOT objective no worker meets, even when idle."""
    objective_s = item.objectives.tpot_s or 0.0
    return Overloaded(
        f"A token takes {1000 * tpot_s:.1f} ms here at best, the TPOT objective is {1000 * objective_s:.1f} ms: "
        "ask for a longer one.",
        cause="tpot_objective",
    )


def refuse_full(queued: int, oldest_wait_s: float) -> Overloaded:
    """The refusal when the queue is full. The retry delay is about as long as the oldest request has waited."""
    retry_s = max(oldest_wait_s, 1.0)
    sentence = f"{queued} requests are already queued; try again in {retry_s:.1f} s."
    return Overloaded(sentence, retry_after_s=retry_s, cause="queue_full")
