"""The ledger entries of a live request, updated with every effect of its life cycle."""

from __future__ import annotations

from baton.protocol.handoff import HandoffOutcome
from baton.protocol.messages import (
    AdoptSequence,
    Cancel,
    HandoffCommitted,
    HandoffEnded,
    HandoffStalled,
    LinkMeasured,
    Prefill,
    Release,
    ReservationRefused,
    Reserve,
    Reserved,
    SendPages,
    WorkerMessage,
)
from baton.router.core import effects
from baton.router.core.commands import SendToWorker
from baton.router.core.live_request import LiveRequest
from baton.router.core.membership import Membership
from baton.router.core.write_fence import WriteFence
from baton.router.policy.cluster_state import ClusterState, RunningSequence
from baton.router.policy.migration import growth_tokens
from baton.router.policy.routing import RoutingDecision


def begin(record: LiveRequest, decision: RoutingDecision, state: ClusterState, now: float) -> None:
    """The request was placed: its prompt is work of one worker, and so is its output if it stays there."""
    record.prefill_worker = decision.prefill
    record.decode_worker = decision.prefill if decision.local else ""
    record.attempts += 1
    if record.latency.routed_s is None:
        record.latency.routed_s = now
    item = record.placement_input
    state.assign(decision.prefill, record.request_id, item.num_tokens, item.page_keys, now)
    record.prefilling = True
    prompt = len(record.request.prompt)
    emitted = item.num_tokens - prompt
    record.sequence = RunningSequence(prompt, item.output, record.request.objectives.tpot_s, emitted)
    if decision.local:
        state.expect(decision.prefill, record.request_id, record.sequence)


def computed(record: LiveRequest, state: ClusterState, now: float) -> None:
    """The first token came: the prompt no longer counts as work."""
    record.prefilling = False
    state.unassign(record.prefill_worker, record.request_id, now)


def orders(
    record: LiveRequest, effect: effects.WorkerEffect, state: ClusterState, fence: WriteFence
) -> list[SendToWorker]:
    """The worker message that an effect stands for; none while a release has to wait."""
    match effect:
        case effects.StartHandoff(source, reservation):
            reservation_id = reservation.reservation_id
            fence.began(reservation_id, source, record.reserved_on[reservation_id])
            return [SendToWorker(source, SendPages(record.request_id, reservation))]
        case effects.ReleasePages(worker, reservation_id):
            unreserve(record, worker, reservation_id, state)
            return fence.release(reservation_id, SendToWorker(worker, Release(reservation_id)))
    return [_order(record, effect, state)]


def _order(record: LiveRequest, effect: effects.Assignment, state: ClusterState) -> SendToWorker:
    match effect:
        case effects.StartPrefill(worker, disaggregated):
            record.resumed = tuple(record.stream.token_ids)
            record.holders.add(worker)
            record.assignees.add(worker)
            return SendToWorker(worker, Prefill(record.request, record.resumed, disaggregated, state.epoch(worker)))
        case effects.AdoptWork(worker):
            _adopt(record, worker, state)
            return SendToWorker(worker, AdoptSequence(record.request_id, len(record.stream.token_ids)))
        case effects.ReservePages(worker, reservation_id):
            return SendToWorker(worker, _reserve(record, worker, reservation_id, state))
        case effects.CancelWork(worker):
            return SendToWorker(worker, Cancel(record.request_id))


def _adopt(record: LiveRequest, worker: str, state: ClusterState) -> None:
    """The request already decodes there; its output so far is about to be replayed."""
    record.prefill_worker, record.decode_worker = "", worker
    record.decoding = record.continued = True
    record.attempts += 1
    record.resumed = tuple(record.stream.token_ids)
    record.holders.add(worker)
    record.assignees.add(worker)
    item = record.placement_input
    objectives, emitted = record.request.objectives, len(record.stream.token_ids)
    record.sequence = RunningSequence(len(record.request.prompt), item.output, objectives.tpot_s, emitted)
    state.expect(worker, record.request_id, record.sequence)


def _reserve(record: LiveRequest, worker: str, reservation_id: str, state: ClusterState) -> Reserve:
    """The order to hold pages there; a request that moves counts on both workers until it has arrived."""
    known, growth = record.resumed, 0
    if record.migrating:
        known = tuple(record.stream.token_ids)
        record.migrating_to = worker
        view = state.workers.get(worker)
        tokens = len(record.request.prompt) + len(known)
        growth = growth_tokens(tokens, view.info.page_size) if view is not None else 0
        growth = max(1, min(growth, record.request.max_total_tokens - tokens))
    else:
        state.forget(record.decode_worker, record.request_id)
        record.decode_worker = worker
        record.decoding, record.committed_id = False, ""  # also where the notice had reached a worker that was lost
    record.reservation_id = reservation_id
    record.reserved_on[reservation_id] = worker
    record.holders.add(worker)
    record.assignees.add(worker)
    state.reserve(worker, reservation_id, len(record.request.prompt) + len(known) + growth)
    if record.sequence is not None:
        state.expect(worker, record.request_id, record.sequence)
    return Reserve(reservation_id, record.request, known, state.epoch(worker), growth)


def apply(
    worker: str, message: WorkerMessage, record: LiveRequest | None, state: ClusterState, membership: Membership
) -> list[SendToWorker]:
    """Update the ledger with a worker's message; returns the releases that were waiting for it."""
    match message:
        case Reserved(reservation):
            state.grant(worker, reservation.reservation_id)
        case ReservationRefused(reservation_id, _, _):
            state.refuse(worker, reservation_id)
            unreserve(record, worker, reservation_id, state)
        case HandoffEnded():
            handed_over(record, worker, message)
            return membership.handoff_ended(worker, message)
        case HandoffStalled(_, reservation_id):
            membership.links.stalled(worker, reservation_id)
        case LinkMeasured():
            membership.links.measured(worker, message)
        case HandoffCommitted(_, reservation_id):
            committed(record, reservation_id)
    return []


def unreserve(record: LiveRequest | None, worker: str, reservation_id: str, state: ClusterState) -> None:
    """The worker holds no pages for it, and does not expect the sequence."""
    state.unreserve(worker, reservation_id)
    if record is not None:
        record.reserved_on.pop(reservation_id, None)
    if record is not None and record.reservation_id == reservation_id:
        state.forget(worker, record.request_id)
        record.holders.discard(worker)
        record.reservation_id = ""  # also where the notice has arrived, or is about to: the target was told to drop it
        if record.committed_id == reservation_id:
            record.committed_id, record.decoding = "", record.migrating


def handed_over(record: LiveRequest | None, source: str, answer: HandoffEnded) -> None:
    """The source has answered; if everything was delivered it holds nothing more for the request."""
    delivered = answer.outcome is HandoffOutcome.DELIVERED
    if record is not None and delivered and answer.reservation_id == record.reservation_id:
        record.holders.discard(source)


def committed(record: LiveRequest | None, reservation_id: str) -> None:
    """The target has a handoff's notice; in a migration this may be known before the source's report."""
    if record is not None and reservation_id == record.reservation_id:
        record.committed_id = reservation_id
        record.decoding = True


def migration_ended(record: LiveRequest, worker: str | None, state: ClusterState) -> None:
    """The sequence is at `worker`, or has stayed."""
    if worker is not None:
        state.forget(record.decode_worker, record.request_id)
        record.holders.discard(record.decode_worker)
        record.decode_worker = worker
        record.decoding = record.committed_id == record.reservation_id
        record.migrations += 1
    else:
        record.reservation_id = record.committed_id
    record.migrating, record.migrating_to = False, ""


def clear(record: LiveRequest, state: ClusterState, now: float) -> None:
    """Remove an attempt from the ledger: no worker holds anything for the request."""
    state.unassign(record.prefill_worker, record.request_id, now)
    for worker in (record.decode_worker, record.migrating_to):
        state.forget(worker, record.request_id)
    record.sequence, record.prefilling, record.reservation_id = None, False, ""
    record.migrating, record.migrating_to = False, ""
    record.decoding, record.committed_id = False, ""
    record.holders.clear()


def forget(record: LiveRequest, state: ClusterState, now: float) -> None:
    """The request is gone."""
    clear(record, state, now)
    for reservation_id, worker in record.reserved_on.items():
        state.unreserve(worker, reservation_id)
