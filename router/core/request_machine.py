"""The life of a request: one event in, the messages and ends that follow out; `LiveRequest` has the state. Pure.

A first placement, a migration and an evacuation are the same handoff: reserve at the target, send, deliver. What
differs is where the sequence stays when it fails: a decoding one stays where it is or, in an evacuation, looks on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from baton.protocol import gateway_messages
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
from baton.router.core.commands import SendToGateway, SendToWorker
from baton.router.core.completion import failure, taken_over
from baton.router.core.events import (
    Adopted,
    Claimed,
    CutOff,
    DecodeFound,
    Emitted,
    Event,
    Finished,
    FirstToken,
    Lost,
    Message,
    Migrate,
    MigrationEnded,
    NoReachableDecode,
    NoticeLost,
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
    reservations: int = 0  # so far: an id may be used again while a source still writes for the earlier request

    def on_event(self, request: LiveRequest, event: Event, now: float) -> list[Output]:
        """Advance the request. Raises `UnexpectedEvent`, and changes nothing, for a pair that is not known."""
        if isinstance(event, Claimed):
            return self._claim(request, event, now)
        if request.phase in (Phase.FINISHING, Phase.CLOSING):
            return request_ends.awaiting_source(request, event)
        match event:
            case Reported(worker, message, unreachable):
                return self._on_message(request, worker, message, unreachable, now)
            case Finished(reason, worker, num_tokens):
                return request_ends.finish(request, reason, worker, num_tokens, now)
            case Stopped(reason, error, num_tokens):
                return request_ends.stop(request, reason, error, num_tokens, now)
            case Lost(worker, reason):
                return request_ends.on_lost(request, worker, reason)
            case CutOff(worker):
                return request_ends.on_cut_off(request, worker)
            case FirstToken(worker):
                return self._on_first_token(request, worker, now)
            case Emitted(answer):
                return self._on_emitted(request, answer)
            case Migrate(worker):
                return self._migrate(request, worker)
            case Stay():
                return request_ends.stay_put(request)
            case Placed(decision) if request.phase is Phase.QUEUED:
                return self._place(request, decision, now)
            case Adopted(worker, num_tokens) if request.claimable:
                return self._adopt(request, worker, num_tokens)
            case DecodeFound(worker) if request.handoff is not None and request.waits_for is not None:
                return [self._reserve(request, request.handoff, worker)]
            case NoticeLost() if request.awaits_commit:
                return request_ends.start_over(request, "the notice of its handoff was lost")
            case NoReachableDecode() if request.handoff is not None and request.waits_for is not None:
                return request_ends.start_over(request, "")
        raise UnexpectedEvent(f"{type(event).__name__} for a request that is {request.phase.value}.")

    def _place(self, request: LiveRequest, decision: RoutingDecision, now: float) -> list[Output]:
        if request.latency.routed_s is None:
            request.latency.routed_s = now
        submit = request.submit
        self._begin(request, decision.prefill, Phase.PREFILLING)
        request.prefill_worker = decision.prefill
        epoch = self.state.epoch(decision.prefill)
        prefill = Prefill(submit.request_id, submit.work, request.gateway, not decision.local, epoch)
        orders: list[Output] = [SendToWorker(decision.prefill, prefill)]
        if not decision.local:
            request.handoff = Handoff(HandoffKind.PLACEMENT)
            if decision.decode is not None:
                orders.append(self._reserve(request, request.handoff, decision.decode))
        return [*orders, _placed(request)]

    def _adopt(self, request: LiveRequest, worker: str, num_tokens: int) -> list[Output]:
        self._begin(request, worker, Phase.DECODING)
        request.prefill_worker, request.adopted = "", True
        if request.sequence is not None:
            request.sequence.emitted = min(max(num_tokens, request.submit.num_emitted), request.submit.max_tokens)
        adopt = AdoptSequence(request.request_id, request.gateway, request.submit.num_emitted)
        return [SendToWorker(worker, adopt), _placed(request)]

    def _begin(self, request: LiveRequest, worker: str, phase: Phase) -> None:
        request.phase, request.runner, request.runs_on, request.leaves = phase, worker, "", ""
        request.attempts += 1
        request.assignees.add(worker)
        submit, output = request.submit, request.prediction.distribution
        request.sequence = RunningSequence(
            submit.num_prompt_tokens, output, submit.objectives.tpot_s, submit.num_emitted
        )

    def _on_first_token(self, request: LiveRequest, worker: str, now: float) -> list[Output]:
        if request.phase is not Phase.PREFILLING or worker != request.runner:
            return []  # it is of an earlier attempt
        request.phase = Phase.DECODING if request.handoff is None else Phase.HANDING_OFF
        if request.latency.first_token_s is None:
            request.latency.first_token_s = now
        if request.sequence is not None:
            request.sequence.emitted += 1
        return []

    def _on_emitted(self, request: LiveRequest, answer: gateway_messages.EmittedTokens) -> list[Output]:
        """Its prompt can be computed again, with the output so far."""
        if request.phase is Phase.ASKING:
            request.submit = replace(request.submit, work=answer.work, num_emitted=answer.num_emitted)
            request.phase = Phase.QUEUED
        return []  # else a worker had kept its sequence

    def _claim(self, request: LiveRequest, event: Claimed, now: float) -> list[Output]:
        """The stream goes to this gateway, which may be the same as before."""
        submit, orders = event.submit, list[Output]()
        same = (request.gateway, request.gateway_incarnation) == (event.gateway, event.incarnation)
        attached = same and request.unclaimed_since_s is None
        if request.gateway != event.gateway:
            error = taken_over(request.request_id)
            orders.append(SendToGateway(request.gateway, failure(request.request_id, error, request.submission)))
        request.gateway, request.gateway_incarnation, request.unclaimed_since_s = event.gateway, event.incarnation, None
        request.called_at_s, request.submission = submit.called_at_s, submit.submission
        request.deadline_s = None if submit.deadline_in_s is None else now + submit.deadline_in_s
        if request.claimable:
            request.submit, request.phase = submit, Phase.QUEUED
        elif not attached:
            adopt = AdoptSequence(request.request_id, event.gateway, submit.num_emitted)
            orders += [SendToWorker(worker, adopt) for worker in request.holders]
        return orders if request.runner is None else [*orders, _placed(request)]

    def _reserve(self, request: LiveRequest, handoff: Handoff, worker: str) -> SendToWorker:
        """Ask for pages; a sequence that decodes has grown since its work was sent, and will have grown further."""
        submit, growth = request.submit, 0
        if request.migrating:
            view, tokens = self.state.workers.get(worker), request.num_tokens
            known = submit.num_prompt_tokens + submit.num_emitted
            growth = tokens - known + (growth_tokens(tokens, view.info.page_size) if view is not None else 0)
            growth = max(1, min(growth, request.max_total_tokens - known))
        self.reservations += 1
        request.assignees.add(worker)
        handoff.target, handoff.state = worker, HandoffState.REQUESTED
        handoff.reservation_id = f"{submit.request_id}/{self.reservations}"
        handoff.reserved_tokens = submit.num_prompt_tokens + submit.num_emitted + growth
        epoch = self.state.epoch(worker)
        reserve = Reserve(handoff.reservation_id, submit.request_id, submit.work, request.gateway, epoch, growth)
        return SendToWorker(worker, reserve)

    def _migrate(self, request: LiveRequest, worker: str | None) -> list[Output]:
        if request.migrating:
            return []  # the end of the running migration answers both
        if request.phase is not Phase.DECODING:
            return [MigrationEnded(None, "its handoff is in flight, or it waits for a worker")]
        if worker is not None and self.state.cut_off(worker, request.gateway):
            return [MigrationEnded(None, f"{worker} cannot reach its gateway")]
        request.handoff = Handoff(HandoffKind.MIGRATION if worker is not None else HandoffKind.EVACUATION)
        return [] if worker is None else [self._reserve(request, request.handoff, worker)]

    def _on_message(
        self, request: LiveRequest, worker: str, message: Message, unreachable: bool, now: float
    ) -> list[Output]:
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
                return request_ends.on_source_ended(request, handoff, message, unreachable, now)
            case HandoffStalled() if handoff.sending:
                return request_ends.elsewhere(request, handoff, "its pages cannot reach the other worker")
            case HandoffCorrupt() if handoff.sending:
                return request_ends.on_corrupt(request)
            case Reserved() | HandoffCommitted():
                return []  # a repeat
        raise UnexpectedEvent(f"{type(message).__name__} for a reservation that is {handoff.state}.")


def _placed(request: LiveRequest) -> SendToGateway:
    placed = gateway_messages.Placed(request.request_id, request.prefill_worker, request.decode_worker)
    return SendToGateway(request.gateway, placed)
