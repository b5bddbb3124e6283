"""One live request: where it is, written down once. Pure.

    QUEUED ──placed──► PREFILLING ──first token──► HANDING_OFF ──delivered, committed──► DECODING ──► CLOSED
       │                   └──────────── it decodes where it was computed ─────────────────►│
       └── adopted: a worker kept it over a restart of the router ─────────────────────────►│

From every phase a lost worker or lost pages lead back to QUEUED; the output so far is prefilled with the prompt then.
Only the gateway has that output: a request that may have any is ASKING until its gateway has answered.
FINISHING and CLOSING wait for the source of a handoff, which may still be writing. What workers hold for the request
(`holds`) and what it waits for (`waits_for`) follow from these fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from baton.protocol.errors import BatonError, HandoffFailed, NotFound, WrongRole
from baton.protocol.gateway_messages import Submit
from baton.protocol.handoff import HandoffReport, HandoffState, HandoffStep, advance
from baton.protocol.latency import Latency
from baton.protocol.request import FinishReason
from baton.router.core.completion import Completion
from baton.router.core.timeline import Timeline
from baton.router.policy.cluster_state import RunningSequence
from baton.router.policy.output_length import Prediction
from baton.router.policy.placement import PlacementInput

MAX_HANDOFF_FAILURES = 3
MAX_MISROUTED = 3  # a worker may change its role while a request is in flight to it, or have dropped a kept sequence


class Phase(Enum):
    ASKING = "asking"  # no worker has it, and its gateway is asked for the output so far
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
    spoiled: str = ""  # why the target cannot continue, once the source has answered

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
    decoding: bool  # it decodes there now
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

    submit: Submit  # with the work as it is to be computed, or was sent to the runner
    gateway: str  # that owns its stream; "": none does, because the request probes a worker
    gateway_incarnation: str
    latency: Latency
    deadline_s: float | None  # on the router's clock
    prediction: Prediction  # of its output length
    phase: Phase = Phase.QUEUED
    runner: str | None = None  # the worker that has it: computes, holds for a handoff, or decodes
    runs_on: str = ""  # the reservation whose pages it runs on; empty where it was computed
    delivered_s: float = 0.0  # when the source of its last handoff had delivered
    leaves: str = ""  # why it has to leave its runner, once the runner's handoff has ended
    handoff: Handoff | None = None
    retries: RetryBudget = field(default_factory=RetryBudget)
    finish: FinishReason | None = None  # in FINISHING
    finisher: str = ""  # the worker that computed the last token
    final_tokens: int | None = None  # of the output, once it has ended
    sequence: RunningSequence | None = None  # its sequence as placement sees it
    prefill_worker: str = ""  # that computed the prompt
    attempts: int = 0
    migrations: int = 0
    pinned: bool = False  # it runs on one worker or not at all, and counts in no statistics
    adopted: bool = False  # its worker had kept it
    called_at_s: float = 0.0  # its present client's call, on its gateway's wall clock
    submission: int = 0  # the gateway's latest
    unclaimed_since_s: float | None = None  # its gateway is lost
    resumed_from: int = 0  # output tokens on its arrival
    charged_tokens: float = 0.0  # of output, to its tenant
    report: HandoffReport | None = None  # on its first handoff
    assignees: set[str] = field(default_factory=set)  # workers ever assigned part of it: their messages about it count
    stays_until_s: float = 0.0  # a migration has failed: the next is not tried before
    restarted_for: str = ""  # why it has started over, the last time
    timeline: Timeline | None = None  # None: it is not sampled
    booked: dict[str, Hold] = field(default_factory=dict)  # what the ledger has of it (ledger.py)

    @property
    def request_id(self) -> str:
        return self.submit.request_id

    @property
    def tenant(self) -> str:
        return self.submit.tenant

    @property
    def page_keys(self) -> tuple[int, ...]:
        """Of the prompt's full pages."""
        return self.submit.page_keys

    @property
    def output_tokens(self) -> int:
        """Output tokens so far. While it decodes, this is an estimate (see `RunningSequence`)."""
        if self.final_tokens is not None:
            return self.final_tokens
        return self.submit.num_emitted if self.sequence is None else self.sequence.emitted

    @property
    def num_tokens(self) -> int:
        """Of the prompt and the output so far."""
        return self.submit.num_prompt_tokens + self.output_tokens

    @property
    def max_total_tokens(self) -> int:
        """Maximum of prompt and output tokens together."""
        return self.submit.num_prompt_tokens + self.submit.max_tokens

    @property
    def claimable(self) -> bool:
        """Whether a worker that has kept its sequence may continue it."""
        return self.phase in (Phase.QUEUED, Phase.ASKING)

    @property
    def closed(self) -> bool:
        """Whether the client's stream has ended."""
        return self.phase in (Phase.CLOSING, Phase.CLOSED)

    @property
    def decoding(self) -> bool:
        """Whether its runner is known to decode it."""
        return self.phase is Phase.DECODING

    @property
    def awaits_commit(self) -> bool:
        """Whether its pages and its state are on their way to its runner, which has yet to commit them."""
        return self.phase is Phase.HANDING_OFF and self.handoff is None

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
            phase = self.phase
            holds[self.runner] = Hold(phase is Phase.PREFILLING, decodes, phase is Phase.DECODING, self.runs_on)
        if handoff is not None and handoff.target is not None:
            holds[handoff.target] = Hold(False, True, False, handoff.reservation_id)
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

    @property
    def placement_input(self) -> PlacementInput:
        """The placement input of the request now."""
        submit = self.submit
        return PlacementInput(
            request_id=submit.request_id,
            num_tokens=self.num_tokens,
            page_keys=submit.page_keys,
            output=self.prediction.distribution,
            objectives=submit.objectives,
            arrival_s=self.latency.arrival_s,
            priority=submit.priority,
            tenant=submit.tenant,
            resumed=self.attempts > 0,
            prefill_worker=self.runner or "",
            total_tokens=self.max_total_tokens,
            gateway=self.gateway,
        )

    def complete(self, error: BatonError | None, reason: FinishReason | None) -> Completion:
        """Its end, now."""
        self.latency.num_tokens = self.output_tokens - self.resumed_from
        return Completion(
            request_id=self.request_id,
            gateway=self.gateway,
            reason=reason,
            error=error,
            prompt_tokens=self.submit.num_prompt_tokens,
            output_tokens=self.output_tokens,
            latency=self.latency,
            prefill_worker=self.prefill_worker,
            decode_worker=self.finisher or self.decode_worker,
            attempts=self.attempts,
            migrations=self.migrations,
            handoff=self.report,
            submission=self.submission,
            handoffs_failed=self.retries.handoffs_failed,
            timeline=self.timeline,
        )
