"""The interface of placement policies: input and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from baton.protocol.errors import Overloaded
from baton.protocol.request import Objectives
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.length_distribution import LengthDistribution, point
from baton.router.policy.routing import RoutingDecision


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

    @property
    def due_s(self) -> float | None:
        """When its first token is due, on the router's clock."""
        return None if self.objectives.ttft_s is None else self.arrival_s + self.objectives.ttft_s


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
