"""The interface of a role. Pure: messages, outcomes and results in, commands out.

A session (baton/worker/session.py) owns it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from baton.engine.step import StepPlan, StepResult
from baton.protocol.gateway_messages import TokenMessage
from baton.protocol.handoff import HandoffNotice
from baton.protocol.messages import RouterMessage, WorkerMessage
from baton.protocol.worker import RoleName

if TYPE_CHECKING:
    from baton.worker.core.state import WorkerState


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to the router."""

    message: WorkerMessage


@dataclass(frozen=True, slots=True)
class SendToGateway:
    """Send a message to a gateway."""

    gateway: str
    message: TokenMessage


@dataclass(frozen=True, slots=True)
class WritePages:
    """Start a write to a peer; its end comes back as `WriteEnded` with the same id.

    With `notice` it is the last of its handoff. `page_ids` are pairwise (ours, the peer's).
    """

    write_id: int
    agent: str
    source_pages: tuple[int, ...]
    target_pages: tuple[int, ...]
    notice: HandoffNotice | None
    checksummed: tuple[
        tuple[int, int], ...
    ] = ()  # (place in the reservation, our page) whose checksums travel with the notice


@dataclass(frozen=True, slots=True)
class SwapOut:
    """Copy our pages into slots of host memory, pairwise."""

    pages: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SwapIn:
    """Copy slots of host memory into our pages, pairwise."""

    slots: tuple[int, ...]
    pages: tuple[int, ...]


Command = Send | SendToGateway | WritePages | SwapOut | SwapIn


@dataclass(frozen=True, slots=True)
class WriteEnded:
    """Our write is over and no longer reads our pages. `error` is empty if every byte arrived."""

    write_id: int
    num_bytes: int
    seconds: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """A role's current load; `Reports` adds the page counts."""

    running: int
    waiting: int
    pending_prefill_tokens: int
    context_tokens: int
    request_ids: tuple[str, ...]
    reservation_ids: tuple[str, ...]
    swapped: int = 0  # of `waiting`, those whose pages are in host memory
    swap_outs: int = 0  # preemptions to host memory so far
    recomputes: int = 0  # preemptions that lost their pages
    decode_steps: int = 0  # so far


class Role(Protocol):
    """Plan, execute, absorb: the session asks for a plan, the shell executes it, and the role absorbs the result.

    Every role is a source of handoffs; one that also receives them is a `HandoffTarget`.
    """

    name: RoleName

    def on_message(self, message: RouterMessage, now: float) -> list[Command]: ...

    def on_write_ended(self, outcome: WriteEnded, now: float) -> list[Command]: ...

    def on_stalled(self, agent: str, now: float) -> list[Command]:
        """Our writes to the peer are stalled: their handoffs stop waiting for them."""
        ...

    def call_off_handoffs(self) -> None:
        """Start no more writes; those in flight end."""
        ...

    def on_new_router(self, state: WorkerState) -> None:
        """Our router is gone, no write to or from us is in flight, and we have a new agent name.

        Sequences that need no peer continue, and their tokens still reach their gateways. All others are dropped.
        """
        ...

    def plan(self, now: float) -> tuple[list[Command], StepPlan | None]:
        """The next step, and the copies that free and restore pages for it. The copies are performed first and in
        order, even without a step: a freed page may have a new owner with the next message."""
        ...

    def absorb(self, plan: StepPlan, result: StepResult, now: float) -> list[Command]: ...

    def occupancy(self) -> Occupancy: ...


@runtime_checkable
class HandoffTarget(Protocol):
    """A role that reserves pages for sequences of other workers."""

    def on_notice(self, notice: HandoffNotice, now: float) -> list[Command]: ...

    def on_corrupt(self, notice: HandoffNotice, wrong_pages: int) -> list[Command]:
        """Called instead of `on_notice` for a notice with corrupt pages."""
        ...

    def reserved_pages(self, reservation_id: str) -> tuple[int, ...]:
        """Our pages that a peer writes for this reservation; empty if it is no longer open."""
        ...

    @property
    def expects_notices(self) -> bool:
        """Whether a peer's notice may come at any moment, so that the shell must poll often."""
        ...
