"""How handoffs, attempts and requests end: by success, failure, loss of a worker, or the client. Pure.

Pages that another worker writes are released only by `Release`, which transfers.py holds back while a write is
possible. A source that is sending always answers; until then its request cannot be sent again.
"""

from __future__ import annotations

from baton.protocol.errors import BatonError, WorkerLost
from baton.protocol.gateway_messages import AskEmitted
from baton.protocol.handoff import HandoffOutcome, HandoffState, HandoffStep
from baton.protocol.messages import Cancel, HandoffEnded, HandoffStalled, Release
from baton.protocol.request import FinishReason
from baton.router.core.commands import SendToGateway, SendToWorker
from baton.router.core.events import End, Event, LossReason, Lost, MigrationEnded, Output, Reported, Stopped
from baton.router.core.live_request import Handoff, HandoffKind, LiveRequest, Phase

MAX_CRASH_WEIGHT = 2 * LossReason.DIED  # a request that was running each time a worker died may be the cause
CORRUPT = "its pages arrived corrupt"
CUT_OFF = "its worker cannot reach its gateway"


def seek(request: LiveRequest, handoff: Handoff, avoid: str | None, what: str) -> list[Output]:
    """The target cannot take the sequence: look for another one, or stay."""
    if handoff.kind is HandoffKind.MIGRATION:
        return _stay(request, f"{avoid} {what}")
    request.handoff = Handoff(handoff.kind, avoid)
    return []


def stay_put(request: LiveRequest) -> list[Output]:
    """End an evacuation that has no target yet; one that has started continues, and may fail."""
    handoff = request.handoff
    if handoff is None or not request.migrating:
        return []
    handoff.kind = HandoffKind.MIGRATION
    return [] if handoff.target is not None or handoff.sending else _stay(request, "it was cancelled")


def _stay(request: LiveRequest, reason: str) -> list[Output]:
    """The migration has ended; the sequence decodes where it is."""
    request.handoff = None
    return [MigrationEnded(None, reason)]


def on_source_ended(
    request: LiveRequest, handoff: Handoff, answer: HandoffEnded, unreachable: bool, now: float
) -> list[Output]:
    """The source's answer to the send order."""
    if answer.outcome is HandoffOutcome.DELIVERED:
        return _delivered(request, handoff, answer, now)
    sentence = f"The KV pages could not be handed over: {answer.reason or 'drained'}."
    blameless = (
        bool(request.leaves) or request.migrating or unreachable or handoff.target is None
    )  # the target was lost
    error = None if blameless else request.retries.on_handoff_failed(sentence)
    if error is not None:
        handoff.take(HandoffStep.ABORT)
        return close(request, None, error)
    return elsewhere(request, handoff, answer.reason or "it ended or was preempted first")


def _delivered(request: LiveRequest, handoff: Handoff, answer: HandoffEnded, now: float) -> list[Output]:
    """The pages and the sequence's state are at the target; the source has released its own."""
    request.runner, request.leaves = None, ""
    if handoff.spoiled:
        return start_over(request, handoff.spoiled)
    if handoff.target is None:  # it died while the source's answer was on its way
        return start_over(request, "its new worker died")
    moved = request.migrating
    handoff.take(HandoffStep.DELIVER)
    committed = handoff.state is HandoffState.COMMITTED
    request.runner, request.runs_on, request.handoff = handoff.target, handoff.reservation_id, None
    request.phase, request.delivered_s = Phase.DECODING if committed else Phase.HANDING_OFF, now
    if not moved:
        request.report = answer.report
        return []
    request.migrations += 1
    return [MigrationEnded(request.runner)]


def elsewhere(request: LiveRequest, handoff: Handoff, reason: str) -> list[Output]:
    """The pages did not arrive; the source still has them: try another target, or stay."""
    handoff.take(HandoffStep.ABORT)
    if request.leaves:
        return start_over(request, request.leaves)
    target, given_up = handoff.target, _give_up_target(request, handoff)
    if request.migrating:
        return [*given_up, *_stay(request, reason)]
    request.handoff = Handoff(handoff.kind, target)
    return given_up


def on_failed(request: LiveRequest, worker: str, error: BatonError) -> list[Output]:
    """A worker cannot continue the request."""
    if worker != request.runner:
        return []  # about an earlier attempt
    if request.pinned or not request.retries.on_misrouted(error):
        return close(request, None, error)
    return _leave(request, "its worker does not have the request")


def _leave(request: LiveRequest, reason: str) -> list[Output]:
    """Start over elsewhere; a source that may be writing answers its send order first."""
    if request.handoff is not None and request.handoff.sending:
        request.leaves = reason
        return []
    return start_over(request, reason)


def on_cut_off(request: LiveRequest, worker: str) -> list[Output]:
    """The worker cannot reach the request's gateway, which lives: another worker has to compute it."""
    handoff = request.handoff
    if worker == request.runner:
        return _leave(request, CUT_OFF)
    if handoff is None or worker != handoff.target:
        return []
    if handoff.sending:
        handoff.spoiled = CUT_OFF
        return []
    given_up = _give_up_target(request, handoff)
    return [*given_up, *seek(request, handoff, worker, "cannot reach its gateway")]


def on_corrupt(request: LiveRequest) -> list[Output]:
    """The target found corrupt pages, and committed nothing. A source that has not answered cannot be asked again."""
    sentence = "The KV pages arrived corrupt several times: look for broken memory or links."
    error = request.retries.on_handoff_failed(sentence)
    if error is not None:
        return close(request, None, error)
    if request.handoff is not None:
        request.handoff.spoiled = CORRUPT
        return []
    return start_over(request, CORRUPT)


def start_over(request: LiveRequest, reason: str) -> list[Output]:
    """Its pages are lost, or no decode worker can get them: the prompt is computed again, mostly from prefix caches.

    Where there may be output, its gateway is asked for it first.
    """
    orders: list[Output] = []
    asks = request.phase is not Phase.PREFILLING and not request.pinned
    if request.runner is not None:
        orders.append(SendToWorker(request.runner, Cancel(request.request_id)))
        if request.runs_on:
            orders.append(SendToWorker(request.runner, Release(request.runs_on)))
    if request.handoff is not None:
        orders += _give_up_target(request, request.handoff)
        orders += [MigrationEnded(None, reason)] if request.migrating else []
    request.phase, request.runner, request.runs_on, request.leaves = Phase.QUEUED, None, "", ""
    request.handoff = request.sequence = None
    request.restarted_for = reason
    if asks:
        request.phase = Phase.ASKING
        orders.append(SendToGateway(request.gateway, AskEmitted(request.request_id)))
    return orders


def _give_up_target(request: LiveRequest, handoff: Handoff) -> list[Output]:
    """The target frees its pages, and ignores a notice that arrives anyway."""
    if handoff.target is None:
        return []
    return [
        SendToWorker(handoff.target, Cancel(request.request_id)),
        SendToWorker(handoff.target, Release(handoff.reservation_id)),
    ]


def on_lost(request: LiveRequest, worker: str, reason: LossReason) -> list[Output]:
    """A worker died or timed out: keep the pages if its peer has them, else start over."""
    handoff = request.handoff
    if worker not in request.holders:
        return []  # it was given up before
    # A worker that only reserved pages, or was still a migration target, had not run it.
    ran = worker == request.runner or (handoff is not None and handoff.sending and not request.migrating)
    request.retries.crash_weight += reason * ran
    if request.retries.crash_weight >= MAX_CRASH_WEIGHT:
        text = "Two workers crashed (or four timed out) while running this request, so it is not retried."
        return close(request, None, WorkerLost(text), lost=worker)
    if worker == request.runner:
        request.runner = None
        return start_over(request, f"{worker} died")
    assert handoff is not None
    handoff.target = None
    if handoff.sending:  # the source reports that its writes failed, then another target is found
        return []
    return seek(request, handoff, worker, "died")


def finish(request: LiveRequest, reason: FinishReason, worker: str, num_tokens: int, now: float) -> list[Output]:
    """The sequence is complete. Wait for the source's report, so that the answer includes the handoff's cost.

    Other workers still on it are cancelled: the target of a sequence that ended with its first token, or a second
    attempt that was overtaken by the first one's decode worker.
    """
    request.finisher, request.final_tokens, request.latency.last_token_s = worker, num_tokens, now
    request.finish = reason
    orders = _cancel(request, worker)
    if request.handoff is not None and request.handoff.sending:
        request.phase = Phase.FINISHING
        return orders
    return [*orders, *_finished(request)]


def _finished(request: LiveRequest) -> list[Output]:
    request.phase = Phase.CLOSED
    return [*_release(request), End(request.finish, None)]


def stop(
    request: LiveRequest, reason: FinishReason | None, error: BatonError | None, num_tokens: int | None, now: float
) -> list[Output]:
    """No more tokens are needed."""
    request.final_tokens, request.latency.last_token_s = num_tokens, now
    return close(request, reason, error)


def close(
    request: LiveRequest, reason: FinishReason | None, error: BatonError | None, lost: str | None = None
) -> list[Output]:
    """End the request for its gateway now, then wait until both workers have freed all; a `lost` one holds nothing."""
    orders: list[Output] = [End(reason, error), *_cancel(request, lost)]
    handoff = request.handoff
    if handoff is not None and handoff.target == lost:
        handoff.target = None
    if handoff is not None and handoff.sending and request.runner != lost:
        request.phase = Phase.CLOSING
        return orders
    request.phase = Phase.CLOSED
    return [*orders, *_release(request, lost)]


def _cancel(request: LiveRequest, but: str | None = None) -> list[Output]:
    return [SendToWorker(worker, Cancel(request.request_id)) for worker in request.holders if worker != but]


def _release(request: LiveRequest, lost: str | None = None) -> list[Output]:
    """Free the pages that were reserved for it, once no write into them is possible."""
    handoff = request.handoff
    if handoff is not None and handoff.target is not None:
        return [SendToWorker(handoff.target, Release(handoff.reservation_id))]
    if request.runner not in (None, lost) and request.runs_on:
        return [SendToWorker(request.runner, Release(request.runs_on))]
    return []


def awaiting_source(request: LiveRequest, event: Event) -> list[Output]:
    """An event in FINISHING or CLOSING: only the source's answer, or a loss, goes on."""
    handoff, finishing = request.handoff, request.phase is Phase.FINISHING
    assert handoff is not None
    match event:
        case Reported(_, HandoffEnded() as answer) if answer.reservation_id == handoff.reservation_id:
            moved = _delivered_late(request, handoff, answer) if finishing else []
            return [*moved, *_source_answered(request)]
        case Reported(_, HandoffStalled() as stalled) if stalled.reservation_id == handoff.reservation_id:
            return _source_answered(request)
        case Lost(worker) if worker == request.runner:
            return _source_answered(request)
        case Lost(worker) if worker == handoff.target:
            handoff.target = None
        case Stopped(_, error) if error is not None and finishing:
            return close(request, None, error)
    return []


def _delivered_late(request: LiveRequest, handoff: Handoff, answer: HandoffEnded) -> list[Output]:
    if answer.outcome is not HandoffOutcome.DELIVERED:
        return []
    if not request.migrating or handoff.target is None:
        request.report = answer.report
        return []
    request.migrations += 1
    request.runner, request.runs_on, handoff.target = handoff.target, handoff.reservation_id, None
    return [MigrationEnded(request.runner)]


def _source_answered(request: LiveRequest) -> list[Output]:
    """The source holds nothing more for the request."""
    if request.phase is Phase.FINISHING:
        return _finished(request)
    request.phase = Phase.CLOSED
    return _release(request)
