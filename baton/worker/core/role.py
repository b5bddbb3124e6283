"""A role: what a worker does with its engine. Pure: messages, outcomes and results in, commands out.

The loop (baton/worker/loop.py) is the shell around it, the simulator another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from baton.engine.step import StepPlan, StepResult
from baton.protocol.handoff import HandoffNotice
from baton.protocol.messages import HeldSequence, RouterMessage, WorkerMessage
from baton.protocol.worker import RoleName
from baton.worker.core.state import WorkerState


@dataclass(frozen=True, slots=True)
class Send:
    """Tell the router."""

    message: WorkerMessage


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
    summed: tuple[
        tuple[int, int], ...
    ] = ()  # (place in the reservation, our page) whose checksums the notice takes along


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


Command = Send | WritePages | SwapOut | SwapIn


@dataclass(frozen=True, slots=True)
class WriteEnded:
    """A write of ours is over: it reads our pages no more. `error` is empty when every byte arrived."""

    write_id: int
    num_bytes: int
    seconds: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What a role holds now; the loop adds the page counts and makes it a load report."""

    running: int
    waiting: int
    uncomputed_tokens: int
    context_tokens: int
    request_ids: tuple[str, ...]
    reservation_ids: tuple[str, ...]
    swapped: int = 0  # of `waiting`, those whose pages are in host memory
    swap_outs: int = 0  # preemptions so far that went there
    recomputes: int = 0  # and those that lost their pages


class Role(Protocol):
    """Plan, execute, absorb: the loop asks for a plan, runs it on the engine and hands back the result."""

    name: RoleName

    def on_message(self, message: RouterMessage, now: float) -> list[Command]: ...

    def on_write_ended(self, outcome: WriteEnded, now: float) -> list[Command]: ...

    def on_stalled(self, agent: str, now: float) -> list[Command]:
        """Our writes to the peer make no progress: what is on its way there goes on without them."""
        ...

    def on_notice(self, notice: HandoffNotice, now: float) -> list[Command]: ...

    def reserved_pages(self, reservation_id: str) -> tuple[int, ...]:
        """Our pages that a peer writes for this reservation; empty when nobody waits for it."""
        ...

    def on_corrupt(self, notice: HandoffNotice, wrong_pages: int) -> list[Command]:
        """The notice has come in place of `on_notice`, with pages that are not what was sent."""
        ...

    def call_off_handoffs(self) -> None:
        """Begin no write any more; those under way end."""
        ...

    def on_new_router(self, state: WorkerState) -> tuple[HeldSequence, ...]:
        """The router that gave us work is gone, nobody writes to or from us, and we have a new name among peers.

        What needs no peer goes on unheard; returns what a router may ask for. All else is given up.
        """
        ...

    def plan(self, now: float) -> tuple[list[Command], StepPlan | None]:
        """The next step, and before it the copies that make room for it and bring back what it reads. They are
        performed in their order before anything else, also where there is no step: a page that was given up may have
        a new owner with the next message."""
        ...

    def absorb(self, plan: StepPlan, result: StepResult, now: float) -> list[Command]: ...

    def occupancy(self) -> Occupancy: ...

    @property
    def expects_peers(self) -> bool:
        """A peer's notice or the end of a write may come at any moment, so the loop must look often."""
        ...
