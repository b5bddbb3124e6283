"""One request's life, from queue to last page freed, as a generator of effects.

    Route ─► Prefill ∥ Reserve ─► SendPages ─► (tokens stream) ─► End
                 │         │ refused: FindDecode, Reserve elsewhere
                 │         └ a worker died: Route again, the output so far is prefilled with the prompt
                 └ max_tokens=1 or end-of-sequence first: End, Release

It yields the effects to perform and receives the next event; it does no I/O and knows no clock. The live router and
the simulator drive the same generator. Tokens do not pass through it; cancellation is an event like any other, so no
phase is unowned: after `End` the client is gone, but the generator runs until every page on both sides is free.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from cluster.errors import BatonError, HandoffFailed, WorkerLost
from cluster.handoff import HandoffOutcome, HandoffReport, Reservation
from cluster.request import FinishReason
from cluster.routing import RoutingDecision

MAX_WORKERS_LOST = 2  # a request that was there each time a worker died may be the cause
MAX_HANDOFF_FAILURES = 3

# Effects


@dataclass(frozen=True, slots=True)
class Route:
    """Queue the request until placement decides; answered by `Routed`."""


@dataclass(frozen=True, slots=True)
class FindDecode:
    """Wait for a decode worker with room; answered by `DecodeFound`."""

    avoid: str | None


@dataclass(frozen=True, slots=True)
class StartPrefill:
    worker: str
    hand_off: bool


@dataclass(frozen=True, slots=True)
class ReservePages:
    worker: str
    reservation_id: str


@dataclass(frozen=True, slots=True)
class StartHandoff:
    source: str
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class CancelWork:
    worker: str


@dataclass(frozen=True, slots=True)
class ReleasePages:
    worker: str
    reservation_id: str


@dataclass(frozen=True, slots=True)
class End:
    """The client's stream ends: with a reason, or with an error."""

    reason: FinishReason | None
    error: BatonError | None
    report: HandoffReport | None = None


Effect = Route | FindDecode | StartPrefill | ReservePages | StartHandoff | CancelWork | ReleasePages | End

# Events


@dataclass(frozen=True, slots=True)
class Routed:
    decision: RoutingDecision


@dataclass(frozen=True, slots=True)
class DecodeFound:
    worker: str


@dataclass(frozen=True, slots=True)
class PagesReserved:
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class PagesRefused:
    reservation_id: str


@dataclass(frozen=True, slots=True)
class SourceEnded:
    reservation_id: str
    outcome: HandoffOutcome
    report: HandoffReport
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The sequence's last token was streamed; `worker`, where known, computed it and holds the sequence no more."""

    reason: FinishReason
    worker: str | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nobody wants more tokens: a stop string came (`reason`), or the client left or its deadline passed (`error`)."""

    reason: FinishReason | None
    error: BatonError | None


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker refuses to go on with the request."""

    error: BatonError


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker that had a part in this request is gone."""

    worker: str


Event = Routed | DecodeFound | PagesReserved | PagesRefused | SourceEnded | Finished | Stopped | Failed | Lost
Life = Generator[tuple[Effect, ...], Event, tuple[Effect, ...]]


@dataclass(slots=True)
class _Attempt:
    """Who holds what for the request now. `None` means nobody."""

    source: str | None = None  # has the request and, unless it runs there whole, its pages until they are delivered
    target: str | None = None  # was asked to reserve, and may hold pages
    reservation_id: str = ""
    sending: bool = False  # the source may be writing into the reservation
    report: HandoffReport | None = None


def lifecycle(request_id: str) -> Life:
    """Drive one request. Start with `next`, then `send` it every event of the request; what it returns are its last
    effects, after which no worker holds anything for it."""
    workers_lost = handoff_failures = reservations = 0
    attempt = _Attempt()
    pending: tuple[Effect, ...] = (Route(),)
    while True:
        event = yield pending
        pending = ()
        match event:
            case Routed(decision):
                attempt = _Attempt(source=decision.prefill)
                pending = (StartPrefill(decision.prefill, not decision.whole),)
                if not decision.whole and decision.decode is None:
                    pending += (FindDecode(avoid=None),)
                elif decision.decode is not None:
                    reservations += 1
                    pending += _reserve(attempt, decision.decode, f"{request_id}/{reservations}")
            case DecodeFound(worker):
                reservations += 1
                pending = _reserve(attempt, worker, f"{request_id}/{reservations}")
            case PagesReserved(reservation) if reservation.reservation_id == attempt.reservation_id:
                if attempt.source is not None:
                    attempt.sending = True
                    pending = (StartHandoff(attempt.source, reservation),)
            case PagesRefused(reservation_id) if reservation_id == attempt.reservation_id:
                refused, attempt.target, attempt.reservation_id = attempt.target, None, ""
                pending = (FindDecode(avoid=refused),)
            case SourceEnded(reservation_id, outcome, report, _) if reservation_id == attempt.reservation_id:
                attempt.sending = False
                if outcome is HandoffOutcome.DELIVERED:
                    attempt.source, attempt.report = None, report
                    if attempt.target is None:  # it died while the source's answer was on its way
                        pending = (Route(),)
                    continue
                handoff_failures += 1
                if handoff_failures >= MAX_HANDOFF_FAILURES:
                    error = HandoffFailed(f"The KV pages could not be handed over: {event.reason or outcome.value}.")
                    return (yield from _close(attempt, End(None, error)))
                pending = (*_release(attempt), FindDecode(avoid=None))
            case Finished(reason, worker):
                return (yield from _close_finished(attempt, reason, worker))
            case Stopped(reason, error):
                return (yield from _close(attempt, End(reason, error)))
            case Failed(error):
                return (yield from _close(attempt, End(None, error)))
            case Lost(worker) if worker in (attempt.source, attempt.target):
                workers_lost += 1
                if workers_lost >= MAX_WORKERS_LOST:
                    poison = WorkerLost("The request was on two workers that died; it is not tried a third time.")
                    return (yield from _close(attempt, End(None, poison), lost=worker))
                pending = _after_loss(attempt, worker)


def _reserve(attempt: _Attempt, worker: str, reservation_id: str) -> tuple[Effect, ...]:
    attempt.target, attempt.reservation_id = worker, reservation_id
    return (ReservePages(worker, reservation_id),)


def _release(attempt: _Attempt) -> tuple[Effect, ...]:
    """Free the reservation, once nobody writes into it."""
    if attempt.target is None:
        return ()
    effect = ReleasePages(attempt.target, attempt.reservation_id)
    attempt.target, attempt.reservation_id = None, ""  # an answer that is still on its way finds nobody
    return (effect,)


def _after_loss(attempt: _Attempt, lost: str) -> tuple[Effect, ...]:
    """What to do when a worker died: keep the prefilled pages if they are still there, else start over."""
    if lost == attempt.source:
        attempt.source, attempt.sending = None, False
        cancel = (CancelWork(attempt.target),) if attempt.target else ()
        return (*cancel, *_release(attempt), Route())
    attempt.target = None
    if attempt.source is None:  # delivered: the pages died with the target
        return (Route(),)
    if attempt.sending:  # the source reports that its writes failed, then another target is found
        return ()
    return (FindDecode(avoid=lost),)


def _close_finished(attempt: _Attempt, reason: FinishReason, worker: str | None) -> Life:
    """The sequence is complete. The source's own report comes first, so that the answer tells what the handoff cost.

    Whoever else still works on it stops: the target of a sequence that ended with its first token, or a second
    attempt that was overtaken by the first one's decode worker.
    """
    others = (other for other in (attempt.source, attempt.target) if other not in (None, worker))
    pending: tuple[Effect, ...] = tuple(CancelWork(other) for other in others if other is not None)
    while attempt.sending and attempt.source is not None:
        event = yield pending
        pending = ()
        match event:
            case SourceEnded(reservation_id, outcome, report, _) if reservation_id == attempt.reservation_id:
                attempt.sending = False
                attempt.source = None
                if outcome is HandoffOutcome.DELIVERED:
                    attempt.report = report
            case Stopped(_, error) if error is not None:
                return (yield from _close(attempt, End(None, error)))
            case Lost(worker) if worker == attempt.source:
                attempt.sending, attempt.source = False, None
            case Lost(worker) if worker == attempt.target:
                attempt.target = None
    return (*pending, *_release(attempt), End(reason, None, attempt.report))


def _close(attempt: _Attempt, end: End, lost: str | None = None) -> Life:
    """End the client's stream now, then see both workers give everything back."""
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
            case SourceEnded(reservation_id, _, _, _) if reservation_id == attempt.reservation_id:
                attempt.sending = False
            case Lost(worker) if worker == attempt.source:
                attempt.sending = False
            case Lost(worker) if worker == attempt.target:
                attempt.target = None
    return _release(attempt)
