"""One request's life, from queue to last page freed, as a generator of effects.

    Route ─► Prefill ∥ Reserve ─► SendPages ─► (tokens stream) ─► End
                 │         │ refused: FindDecode, Reserve elsewhere
                 │         └ a worker died: Route again, the output so far is prefilled with the prompt
                 └ max_tokens=1 or end-of-sequence first: End, Release

    Held ─► AdoptWork: a worker kept it over a restart of the router ─► (tokens stream)
    Migrate ─► (FindDecode) ─► Reserve elsewhere ─► SendPages to the worker that decodes ─► MigrationEnded

It yields the effects to perform and receives the next event; it does no I/O and knows no clock. The live router and
the simulator drive the same generator. Tokens do not pass through it; cancellation is an event like any other, so no
phase is unowned: after `End` the client is gone, but the generator runs until every page on both sides is free.
"""

from __future__ import annotations

from collections.abc import Generator

from baton.protocol.errors import WorkerLost
from baton.protocol.handoff import HandoffOutcome, HandoffReport
from baton.protocol.request import FinishReason
from baton.router.core.attempt import Attempt, RetryBudget
from baton.router.core.effects import (
    AdoptWork,
    CancelWork,
    Effect,
    End,
    FindCapacity,
    FindDecode,
    MigrationEnded,
    ReleasePages,
    ReservePages,
    Route,
    StartHandoff,
    StartPrefill,
    StopSeeking,
)
from baton.router.core.life_events import (
    Corrupt,
    DecodeFound,
    Event,
    Failed,
    Finished,
    HandoffStalled,
    Held,
    LossReason,
    Lost,
    Migrate,
    NoReachableDecode,
    PagesRefused,
    PagesReserved,
    Routed,
    SourceEnded,
    Stay,
    Stopped,
)

MAX_CRASH_WEIGHT = 2 * LossReason.DIED  # a request that was running each time a worker died may be the cause
CORRUPT = "its pages arrived corrupt"

Life = Generator[tuple[Effect, ...], Event, tuple[Effect, ...]]


def lifecycle(request_id: str) -> Life:
    """Drive one request. Start with `next`, then `send` it every event of the request. It returns its last effects,
    after which no worker holds anything for it."""
    budget, reservations = RetryBudget(), 0
    attempt = Attempt()
    pending: tuple[Effect, ...] = (Route(),)
    while True:
        event = yield pending
        pending = ()
        match event:
            case Routed(decision):
                attempt = Attempt(source=decision.prefill)
                pending = (StartPrefill(decision.prefill, not decision.local),)
                if not decision.local and decision.decode is None:
                    pending += (FindDecode(avoid=None),)
                elif decision.decode is not None:
                    reservations += 1
                    pending += _reserve(attempt, decision.decode, f"{request_id}/{reservations}")
            case Held(worker):
                attempt, pending = Attempt(source=worker), (AdoptWork(worker),)
            case DecodeFound(worker):
                reservations += 1
                pending = _reserve(attempt, worker, f"{request_id}/{reservations}")
            case PagesReserved(reservation) if reservation.reservation_id == attempt.reservation_id:
                if attempt.source is not None and not attempt.sending:
                    attempt.sending = True
                    pending = (StartHandoff(attempt.source, reservation),)
            case PagesRefused(reservation_id) if reservation_id == attempt.reservation_id:
                refused, attempt.target, attempt.reservation_id = attempt.target, None, ""
                pending = _seek_another(attempt, refused, "has too few free pages")
            case SourceEnded(reservation_id) if attempt.awaits(reservation_id):
                pending = _source_ended(attempt, budget, event)
            case HandoffStalled(reservation_id) if attempt.awaits(reservation_id):
                attempt.sending = False
                pending = _elsewhere(attempt, "its pages cannot reach the other worker")
            case NoReachableDecode() if attempt.source is not None and attempt.target is None and not attempt.moving:
                pending, attempt = (CancelWork(attempt.source), Route()), Attempt()
            case Corrupt(reservation_id) if reservation_id == attempt.reservation_id:
                pending = _corrupt(attempt, budget)
            case Migrate() if attempt.moving:
                pass  # the end of the running migration answers both
            case Migrate(worker) if not attempt.sending and (attempt.source is None) != (attempt.target is None):
                reservations += 1
                pending = _migrate(attempt, worker, f"{request_id}/{reservations}")
            case Migrate():
                pending = (MigrationEnded(None, "it is already migrating"),)
            case Stay() if attempt.moving:
                attempt.insist = False
                if attempt.target is None and not attempt.sending:
                    pending = (StopSeeking(), *_stays(attempt, "it was cancelled"))
            case Finished(reason, worker):
                return (yield from _close_finished(attempt, reason, worker))
            case Stopped(reason, error):
                return (yield from _close(attempt, End(reason, error)))
            case Failed(error, worker) if worker == attempt.source:  # else it is about an earlier attempt
                if not budget.on_misrouted(error):
                    return (yield from _close(attempt, End(None, error)))
                pending = _misrouted(attempt)
            case Lost(worker, loss) if worker in (attempt.source, attempt.target):
                # A worker that only reserved pages, or was still a migration target, had not run it.
                aside = attempt.source is not None and (attempt.moving or not attempt.sending)
                budget.crash_weight += loss * (worker == attempt.source or not aside)
                if budget.crash_weight >= MAX_CRASH_WEIGHT:
                    poison = WorkerLost(
                        "Two workers crashed (or four timed out) while running this request, so it is not retried."
                    )
                    return (yield from _close(attempt, End(None, poison), lost=worker))
                pending = _after_loss(attempt, worker)
        if budget.error is not None:
            return (yield from _close(attempt, End(None, budget.error)))


def _reserve(attempt: Attempt, worker: str, reservation_id: str) -> tuple[Effect, ...]:
    attempt.target, attempt.reservation_id = worker, reservation_id
    return (ReservePages(worker, reservation_id),)


def _migrate(attempt: Attempt, worker: str | None, reservation_id: str) -> tuple[Effect, ...]:
    """The decode worker becomes the source of a handoff."""
    if attempt.source is None:
        attempt.source, attempt.target, attempt.reservation_id = attempt.target, None, ""
    attempt.moving, attempt.insist = True, worker is None
    if worker is None:
        return _seek_another(attempt, None, "")
    return _reserve(attempt, worker, reservation_id)


def _seek_another(attempt: Attempt, worker: str | None, what: str) -> tuple[Effect, ...]:
    """The intended target cannot take the sequence."""
    if not attempt.moving or attempt.source is None:
        return (FindDecode(avoid=worker),)
    if not attempt.insist:
        return _stays(attempt, f"{worker} {what}")
    return (FindCapacity(home=attempt.source, avoid=worker),)


def _stays(attempt: Attempt, reason: str) -> tuple[Effect, ...]:
    attempt.moving = False
    return (MigrationEnded(None, reason),)


def _source_ended(attempt: Attempt, budget: RetryBudget, end: SourceEnded) -> tuple[Effect, ...]:
    """The source's answer to the send order."""
    attempt.sending = False
    if end.outcome is HandoffOutcome.DELIVERED:
        return _delivered(attempt, end.report)
    return _not_delivered(attempt, budget, end)


def _delivered(attempt: Attempt, report: HandoffReport) -> tuple[Effect, ...]:
    """The pages and the sequence's state are at the target."""
    attempt.source = None
    if attempt.corrupt:
        return _start_over(attempt, CORRUPT)
    moved, attempt.moving = attempt.moving, False
    if not moved:
        attempt.report = report
    if attempt.target is None:  # it died while the source's answer was on its way
        return (*((MigrationEnded(None, "its new worker died"),) if moved else ()), Route())
    return (MigrationEnded(attempt.target, report=report),) if moved else ()


def _not_delivered(attempt: Attempt, budget: RetryBudget, end: SourceEnded) -> tuple[Effect, ...]:
    """The source's writes failed or were drained; it still has the pages."""
    sentence = f"The KV pages could not be handed over: {end.reason or 'drained'}."
    blameless = attempt.absent or attempt.moving or end.unreachable or attempt.target is None  # the target was lost
    if not blameless and not budget.on_handoff_failed(sentence):
        return ()
    return _elsewhere(attempt, end.reason or "it ended or was preempted first")


def _elsewhere(attempt: Attempt, reason: str) -> tuple[Effect, ...]:
    """Try another target: the source still has the pages."""
    attempt.corrupt = False
    if attempt.absent:
        return _misrouted(attempt)
    target, given_up = attempt.target, _give_up_target(attempt)
    if attempt.moving:
        return (*given_up, *_stays(attempt, reason))
    return (*given_up, FindDecode(avoid=target))


def _misrouted(attempt: Attempt) -> tuple[Effect, ...]:
    """The source does not have the request. If it was told to send pages, wait for its answer to that first."""
    attempt.absent = True
    if attempt.sending or attempt.source is None:
        return ()
    cancel, attempt.source = CancelWork(attempt.source), None
    return (cancel, *_start_over(attempt, "its worker does not have the request"))


def _corrupt(attempt: Attempt, budget: RetryBudget) -> tuple[Effect, ...]:
    """The target found corrupt bytes. Wait for the source's own report, since it cannot be asked again before."""
    sentence = "The KV pages arrived corrupt several times: look for broken memory or links."
    if not budget.on_handoff_failed(sentence):
        return ()
    attempt.corrupt = True
    return _start_over(attempt, CORRUPT) if attempt.source is None else ()


def _start_over(attempt: Attempt, reason: str) -> tuple[Effect, ...]:
    """The pages are lost: the prompt is computed again, mostly from the prefix cache."""
    ended = _stays(attempt, reason) if attempt.moving else ()
    return (*_give_up_target(attempt), *ended, Route())


def _give_up_target(attempt: Attempt) -> tuple[Effect, ...]:
    """A write failed: the target frees its pages, and ignores a notice that arrived anyway."""
    cancel = (CancelWork(attempt.target),) if attempt.target else ()
    return (*cancel, *_release(attempt))


def _release(attempt: Attempt) -> tuple[Effect, ...]:
    """Free the reservation, once no write into it is possible."""
    if attempt.target is None:
        return ()
    effect = ReleasePages(attempt.target, attempt.reservation_id)
    attempt.target, attempt.reservation_id = None, ""  # a late answer is ignored
    return (effect,)


def _after_loss(attempt: Attempt, lost: str) -> tuple[Effect, ...]:
    """What to do when a worker died: keep the prefilled pages if they are still there, else start over."""
    if lost == attempt.source:
        ended = _stays(attempt, f"{lost} died") if attempt.moving else ()
        attempt.source, attempt.sending = None, False
        return (*_give_up_target(attempt), *ended, Route())
    attempt.target = None
    if attempt.source is None:  # delivered: the pages died with the target
        return (Route(),)
    if attempt.sending:  # the source reports that its writes failed, then another target is found
        return ()
    return _seek_another(attempt, lost, "died")


def _close_finished(attempt: Attempt, reason: FinishReason, worker: str | None) -> Life:
    """The sequence is complete. Wait for the source's report, so that the answer includes the handoff's cost.

    Other workers still on it are cancelled: the target of a sequence that ended with its first token, or a second
    attempt that was overtaken by the first one's decode worker.
    """
    others = (other for other in (attempt.source, attempt.target) if other not in (None, worker))
    pending: tuple[Effect, ...] = tuple(CancelWork(other) for other in others if other is not None)
    while attempt.sending and attempt.source is not None:
        event = yield pending
        pending = ()
        match event:
            case SourceEnded(reservation_id, outcome, report) if reservation_id == attempt.reservation_id:
                attempt.sending = False
                attempt.source = None
                if outcome is HandoffOutcome.DELIVERED and attempt.moving and attempt.target is not None:
                    pending = (MigrationEnded(attempt.target, report=report),)
                elif outcome is HandoffOutcome.DELIVERED:
                    attempt.report = report
            case HandoffStalled(reservation_id) if reservation_id == attempt.reservation_id:
                attempt.sending, attempt.source = False, None
            case Stopped(_, error) if error is not None:
                return (yield from _close(attempt, End(None, error)))
            case Lost(worker) if worker == attempt.source:
                attempt.sending, attempt.source = False, None
            case Lost(worker) if worker == attempt.target:
                attempt.target = None
    return (*pending, *_release(attempt), End(reason, None, attempt.report))


def _close(attempt: Attempt, end: End, lost: str | None = None) -> Life:
    """End the client's stream now, then wait until both workers have freed everything."""
    if lost == attempt.source:
        attempt.source, attempt.sending = None, False
    if lost == attempt.target:
        attempt.target = None
    end = End(end.reason, end.error, attempt.report)
    cancels = tuple(CancelWork(worker) for worker in dict.fromkeys((attempt.source, attempt.target)) if worker)
    if not attempt.sending:
        return (end, *cancels, *_release(attempt))
    pending: tuple[Effect, ...] = (end, *cancels)
    while attempt.sending:
        event = yield pending
        pending = ()
        match event:
            case SourceEnded(reservation_id) | HandoffStalled(reservation_id) if (
                reservation_id == attempt.reservation_id
            ):
                attempt.sending = False
            case Lost(worker) if worker == attempt.source:
                attempt.sending = False
            case Lost(worker) if worker == attempt.target:
                attempt.target = None
    return _release(attempt)
