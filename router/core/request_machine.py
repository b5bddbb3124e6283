"""The life of a request: one event in, the messages and ends that follow out; `LiveRequest` has the state. Pure.

A first placement, a migration and an evacuation are the same handoff: reserve at the target, send, deliver. What
differs is where the sequence stays when it fails: a decoding one stays where it is or, in an evacuation, looks on.
"""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.errors import InternalError, error_from_name
from baton.protocol.handoff import HandoffState, HandoffStep
from baton.protocol.messages import (
    AdoptSequence,
    HandoffCommitted,
    HandoffCorrupt,
    HandoffEnded,
    HandoffStalled,
    Prefill,
    RequestFailed,
    ReservationRefused,
    Reserve,
    Reserved,
    SendPages,
)
from baton.router.core import request_ends
from baton.router.core.commands import SendToWorker
from baton.router.core.events import (
    Adopted,
    DecodeFound,
    Event,
    Finished,
    FirstToken,
    Lost,
    Message,
    Migrate,
    MigrationEnded,
    NoReachableDecode,
    Output,
    Placed,
    Reported,
    Stay,
    Stopped,
)
from baton.router.core.live_request import Handoff, HandoffKind, LiveRequest, Phase
from baton.router.policy.cluster_state import ClusterState, RunningSequence
from baton.router.policy.decode_target import growth_tokens
from baton.router.policy.placement import RoutingDecision


class UnexpectedEvent(InternalError):
    """An event that the request cannot have in its phase: a defect here, or in a worker."""


@dataclass(eq=False)
class RequestMachine:
    """Advances requests; `state` answers how often a worker has changed its role, and its page size."""

    state: ClusterState

    def on_event(self, request: LiveRequest, event: Event, now: float) -> list[Output]:
        """Advance the request. Raises `UnexpectedEvent`, and changes nothing, for a pair that is not known."""
        if request.phase in (Phase.FINISHING, Phase.CLOSING):
            return request_ends.awaiting_source(request, event)
        match event:
            case Reported(worker, message, unreachable):
                return self._on_message(request, worker, message, unreachable)
            case Finished(reason, worker):
                return request_ends.finish(request, reason, worker)
            case Stopped(reason, error):
                return request_ends.close(request, reason, error)
            case Lost(worker, reason):
                return request_ends.on_lost(request, worker, reason)
            case FirstToken(worker):
                if request.phase is Phase.PREFILLING and worker == request.runner:  # else it is of an earlier attempt
                    request.phase = Phase.DECODING if request.handoff is None else Phase.HANDING_OFF
                return []
            case Migrate(worker):
                return self._migrate(request, worker)
            case Stay():
                return request_ends.stay_put(request)
            case Placed(decision) if request.phase is Phase.QUEUED:
                return self._place(request, decision, now)
            case Adopted(worker) if request.phase is Phase.QUEUED:
                return self._adopt(request, worker)
            case DecodeFound(worker) if request.handoff is not None and request.waits_for is not None:
                return [self._reserve(request, request.handoff, worker)]
            case NoReachableDecode() if request.handoff is not None and request.waits_for is not None:
                return request_ends.start_over(request, "")
        raise UnexpectedEvent(f"{type(event).__name__} for a request that is {request.phase.value}.")

    def _place(self, request: LiveRequest, decision: RoutingDecision, now: float) -> list[Output]:
        if request.latency.routed_s is None:
            request.latency.routed_s = now
        self._begin(request, decision.prefill, Phase.PREFILLING)
        request.prefill_worker = decision.prefill
        epoch = self.state.epoch(decision.prefill)
        prefill = Prefill(request.request, request.prefilled_output, not decision.local, epoch)
        order = SendToWorker(decision.prefill, prefill)
        if decision.local:
            return [order]
        request.handoff = Handoff(HandoffKind.PLACEMENT)
        return [order] if decision.decode is None else [order, self._reserve(request, request.handoff, decision.decode)]

    def _adopt(self, request: LiveRequest, worker: str) -> list[Output]:
        self._begin(request, worker, Phase.DECODING)
        request.prefill_worker, request.adopted = "", True
        return [SendToWorker(worker, AdoptSequence(request.request_id, len(request.stream.token_ids)))]

    def _begin(self, request: LiveRequest, worker: str, phase: Phase) -> None:
        request.phase, request.runner, request.runs_on, request.absent = phase, worker, "", False
        request.attempts += 1
        request.assignees.add(worker)
        request.prefilled_output = tuple(request.stream.token_ids)
        prompt, objectives = len(request.request.prompt), request.request.objectives
        output, emitted = request.prediction.distribution, len(request.prefilled_output)
        request.sequence = RunningSequence(prompt, output, objectives.tpot_s, emitted)

    def _reserve(self, request: LiveRequest, handoff: Handoff, worker: str) -> SendToWorker:
        """Ask for pages; a sequence that decodes has grown when they have arrived."""
        known, growth = request.prefilled_output, 0
        if request.migrating:
            known = tuple(request.stream.token_ids)
            view, tokens = self.state.workers.get(worker), len(request.request.prompt) + len(known)
            growth = growth_tokens(tokens, view.info.page_size) if view is not None else 0
            growth = max(1, min(growth, request.request.max_total_tokens - tokens))
        request.reservations += 1
        request.assignees.add(worker)
        handoff.target, handoff.state = worker, HandoffState.REQUESTED
        handoff.reservation_id = f"{request.request_id}/{request.reservations}"
        handoff.reserved_tokens = len(request.request.prompt) + len(known) + growth
        epoch = self.state.epoch(worker)
        return SendToWorker(worker, Reserve(handoff.reservation_id, request.request, known, epoch, growth))

    def _migrate(self, request: LiveRequest, worker: str | None) -> list[Output]:
        if request.migrating:
            return []  # the end of the running migration answers both
        if request.phase is not Phase.DECODING:
            return [MigrationEnded(None, "its handoff is in flight, or it waits for a worker")]
        request.handoff = Handoff(HandoffKind.MIGRATION if worker is not None else HandoffKind.EVACUATION)
        return [] if worker is None else [self._reserve(request, request.handoff, worker)]

    def _on_message(self, request: LiveRequest, worker: str, message: Message, unreachable: bool) -> list[Output]:
        handoff = request.handoff
        match message:
            case RequestFailed(_, error, text):
                return request_ends.on_failed(request, worker, error_from_name(error, text))
            case HandoffCommitted(_, reservation_id) if reservation_id == request.runs_on:
                if request.phase is Phase.HANDING_OFF:
                    request.phase = Phase.DECODING
                return []
            case HandoffCorrupt(_, reservation_id) if reservation_id == request.runs_on:
                return request_ends.on_corrupt(request)
        if handoff is None or message.reservation_id != handoff.reservation_id:
            return []  # about an earlier reservation
        match message:
            case Reserved() if handoff.state is HandoffState.REQUESTED and request.runner is not None:
                handoff.take(HandoffStep.GRANT)
                handoff.take(HandoffStep.WRITE)
                return [SendToWorker(request.runner, SendPages(request.request_id, message.reservation))]
            case ReservationRefused() if handoff.state is HandoffState.REQUESTED:
                return request_ends.seek(request, handoff, handoff.target, "has too few free pages")
            case HandoffCommitted() if handoff.state is HandoffState.TRANSFERRING:
                handoff.take(HandoffStep.COMMIT)
                return []
            case HandoffEnded() if handoff.sending:
                return request_ends.on_source_ended(request, handoff, message, unreachable)
            case HandoffStalled() if handoff.sending:
                return request_ends.elsewhere(request, handoff, "its pages cannot reach the other worker")
            case HandoffCorrupt() if handoff.sending:
                return request_ends.on_corrupt(request)
            case Reserved() | HandoffCommitted():
                return []  # a repeat
        raise UnexpectedEvent(f"{type(message).__name__} for a reservation that is {handoff.state}.")
