"""One live request: where it is, written down once. Pure.

    QUEUED ──placed──► PREFILLING ──first token──► HANDING_OFF ──delivered, committed──► DECODING ──► CLOSED
       │                   └──────────── it decodes where it was computed ─────────────────►│
       └── adopted: a worker kept it over a restart of the router ─────────────────────────►│

From every phase a lost worker or lost pages lead back to QUEUED; the output so far is prefilled with the prompt then.
FINISHING and CLOSING wait for the source of a handoff, which may still be writing. What workers hold for the request
(`holds`) and what it waits for (`waits_for`) follow from these fields.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

from baton.gateway.core.stream import OutputStream, TextToken
from baton.protocol.errors import (
    BatonError,
    DeadlineExceeded,
    HandoffFailed,
    InvalidRequest,
    NotFound,
    WorkerLost,
    WrongRole,
)
from baton.protocol.handoff import HandoffReport, HandoffState, HandoffStep, advance
from baton.protocol.request import FinishReason, Request
from baton.router.core.completion import Completion
from baton.router.core.events import Stopped
from baton.router.core.latency import Latency
from baton.router.policy.cluster_state import RunningSequence
from baton.router.policy.output_length import Prediction
from baton.router.policy.placement import PlacementInput

MAX_HANDOFF_FAILURES = 3
MAX_MISROUTED = 3  # a worker may change its role while a request is in flight to it, or have dropped a kept sequence


class Phase(Enum):
    QUEUED = "queued"  # no worker has it
    PREFILLING = "prefilling"  # its worker computes the prompt
    HANDING_OFF = "handing off"  # the prompt is computed, and no worker is known to decode
    DECODING = "decoding"
    FINISHING = "finishing"  # the answer is complete, but for the report on its handoff
    CLOSING = "closing"  # the client has its end; a write of its pages may still be in flight
    CLOSED = "closed"  # no worker holds anything for it


class HandoffKind(Enum):
    PLACEMENT = "placement"  # from the worker that computed the prompt
    MIGRATION = "migration"  # to a named worker; else the sequence stays where it is
    EVACUATION = "evacuation"  # to any worker, as soon as one has capacity


@dataclass(slots=True, eq=False)
class Handoff:
    """The request's sequence on its way from its worker to another one."""

    kind: HandoffKind
    avoid: str | None = None  # refused, or could not be reached
    target: str | None = None  # was asked to reserve, and may hold pages; None: still looking, or it was lost
    reservation_id: str = ""
    reserved_tokens: int = 0
    state: HandoffState | None = None  # of the reservation; None: no worker was asked yet
    corrupt: bool = False  # the target found corrupt pages

    @property
    def sending(self) -> bool:
        """Whether the source may be writing into the reservation: it has yet to report how that ended."""
        return self.state in (HandoffState.TRANSFERRING, HandoffState.ARRIVED)

    def take(self, step: HandoffStep) -> None:
        """Advance by the protocol's table."""
        assert self.state is not None
        self.state = advance(self.state, step)


@dataclass(slots=True)
class RetryBudget:
    """The failures of a request so far, over all its attempts."""

    crash_weight: int = 0  # of lost workers
    handoffs_failed: int = 0
    misrouted: int = 0

    def on_misrouted(self, error: BatonError) -> bool:
        """Whether the worker only does not have it, and to look for another one."""
        self.misrouted += 1
        return isinstance(error, WrongRole | NotFound) and self.misrouted <= MAX_MISROUTED

    def on_handoff_failed(self, sentence: str) -> HandoffFailed | None:
        """None: try another one. Else the end of the request."""
        self.handoffs_failed += 1
        return HandoffFailed(sentence) if self.handoffs_failed >= MAX_HANDOFF_FAILURES else None


@dataclass(frozen=True, slots=True)
class Hold:
    """What one worker has, or is about to have, for a request."""

    prompt: bool  # its prompt counts as work
    sequence: bool  # it decodes there, or will
    reservation_id: str  # of pages that another worker writes or wrote; empty: none


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait for a worker. `seeks`: for a decode worker; else for the policy's decision."""

    seeks: bool = False
    avoid: str | None = None
    home: str | None = None  # the sequence decodes there and has to leave


@dataclass(slots=True, eq=False)
class LiveRequest:
    """One request. It leaves the router in CLOSED, which may be after the client is gone."""

    request: Request
    stream: OutputStream
    latency: Latency
    page_keys: tuple[int, ...]  # of the prompt's full pages
    prediction: Prediction  # of its output length
    phase: Phase = Phase.QUEUED
    runner: str | None = None  # the worker that has it: computes, holds for a handoff, or decodes
    runs_on: str = ""  # the reservation whose pages it runs on; empty where it was computed
    absent: bool = False  # the runner reported that it does not have it
    handoff: Handoff | None = None
    retries: RetryBudget = field(default_factory=RetryBudget)
    finish: FinishReason | None = None  # in FINISHING
    sequence: RunningSequence | None = None  # its sequence as placement sees it
    prefill_worker: str = ""  # that computed the prompt
    prefilled_output: tuple[int, ...] = ()  # output before this attempt: prefilled with the prompt
    attempts: int = 0
    reservations: int = 0
    migrations: int = 0
    pinned: bool = False  # it runs on one worker or not at all, and counts in no statistics
    adopted: bool = False  # it was running when the router started
    report: HandoffReport | None = None  # on its first handoff
    assignees: set[str] = field(default_factory=set)  # workers ever assigned part of it: their messages about it count
    stays_until_s: float = 0.0  # a migration has failed: the next is not tried before
    booked: dict[str, Hold] = field(default_factory=dict)  # what the ledger has of it (ledger.py)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_tokens(self) -> int:
        """Of the prompt and the output so far."""
        return len(self.request.prompt) + len(self.stream.token_ids)

    @property
    def closed(self) -> bool:
        """Whether the client's stream has ended."""
        return self.phase in (Phase.CLOSING, Phase.CLOSED)

    @property
    def decoding(self) -> bool:
        """Whether its runner is known to decode it."""
        return self.phase is Phase.DECODING

    @property
    def migrating(self) -> bool:
        return self.handoff is not None and self.handoff.kind is not HandoffKind.PLACEMENT

    @property
    def target(self) -> str | None:
        """The target of its handoff."""
        return self.handoff.target if self.handoff is not None else None

    @property
    def holders(self) -> tuple[str, ...]:
        """Workers that may hold something for it: its runner, and the target of its handoff."""
        if self.phase is Phase.CLOSED:
            return ()
        return tuple(worker for worker in dict.fromkeys((self.runner, self.target)) if worker is not None)

    @property
    def decode_worker(self) -> str:
        """The worker that decodes it, or will; empty while that is open."""
        if self.handoff is not None and self.handoff.kind is HandoffKind.PLACEMENT:
            return self.handoff.target or ""
        return self.runner or ""

    @property
    def reservation_ids(self) -> tuple[str, ...]:
        """Reservations that workers hold for it."""
        ids = (self.runs_on, self.handoff.reservation_id if self.handoff is not None else "")
        return () if self.phase is Phase.CLOSED else tuple(filter(None, ids))

    def holds(self) -> dict[str, Hold]:
        """By worker."""
        if self.phase is Phase.CLOSED:
            return {}
        holds, handoff = {}, self.handoff
        if self.runner is not None:
            decodes = handoff is None or handoff.kind is not HandoffKind.PLACEMENT
            holds[self.runner] = Hold(self.phase is Phase.PREFILLING, decodes, self.runs_on)
        if handoff is not None and handoff.target is not None:
            holds[handoff.target] = Hold(False, True, handoff.reservation_id)
        return holds

    @property
    def waits_for(self) -> Wait | None:
        """What it waits for that `Dispatch` has to find."""
        if self.phase is Phase.QUEUED:
            return Wait()
        handoff = self.handoff
        if handoff is None or handoff.state is not None or self.closed or self.phase is Phase.FINISHING:
            return None
        return Wait(True, handoff.avoid, self.runner if handoff.kind is HandoffKind.EVACUATION else None)

    def may_move(self, now: float) -> bool:
        """Whether a migration could start now."""
        return self.decoding and self.handoff is None and now >= self.stays_until_s

    def replay(self, request: Request) -> list[TextToken]:
        """The streamed tokens, for a repeat of the same request.

        Raises `InvalidRequest` if it is another one of the same id, `WorkerLost` (try again) while it is ending.
        """
        mine, other = self.request.sampling, request.sampling
        if request.prompt != self.request.prompt or replace(other, seed=mine.seed) != mine:
            raise InvalidRequest(
                f"Request id {request.request_id!r} is in use by another live request; choose another."
            )
        if self.closed:
            raise WorkerLost(f"Request {request.request_id!r} is ending; retry in a moment.")
        again = OutputStream(request, self.stream.vocabulary)
        return again.resume(self.stream.token_ids)

    def on_tokens(self, count: int, now: float) -> None:
        """`count` more tokens went to the client."""
        self.latency.on_tokens(count, now)
        if self.sequence is not None:
            self.sequence.emitted += count

    @property
    def placement_input(self) -> PlacementInput:
        """The placement input of the request now."""
        request = self.request
        return PlacementInput(
            request_id=request.request_id,
            num_tokens=self.num_tokens,
            page_keys=self.page_keys,
            output=self.prediction.distribution,
            objectives=request.objectives,
            arrival_s=self.latency.arrival_s,
            priority=request.priority,
            tenant=request.tenant,
            resumed=self.attempts > 0,
            prefill_worker=self.runner or "",
            total_tokens=request.max_total_tokens,
        )

    def complete(self, error: BatonError | None, reason: FinishReason | None) -> Completion:
        return Completion(
            request_id=self.request_id,
            reason=reason,
            error=error,
            prompt_tokens=len(self.request.prompt),
            output_tokens=len(self.stream.token_ids),
            cached_tokens=self.stream.cached_tokens,
            trailing_text=self.stream.trailing_text,
            latency=self.latency,
            prefill_worker=self.prefill_worker,
            decode_worker=self.decode_worker,
            attempts=self.attempts,
            migrations=self.migrations,
            handoff=self.report,
        )


def overdue(requests: Iterable[LiveRequest], now: float) -> list[tuple[str, Stopped]]:
    """A `Stopped` event for every request whose deadline has passed while its client waits."""
    error = DeadlineExceeded("The deadline passed before the answer was complete.")
    return [
        (one.request_id, Stopped(None, error))
        for one in requests
        if one.request.deadline_s is not None and now >= one.request.deadline_s and not one.closed
    ]
