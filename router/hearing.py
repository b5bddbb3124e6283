"""What a worker's message means for the request it speaks of. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cluster import messages
from cluster.errors import error_from_name
from cluster.messages import WorkerMessage
from router import life_events
from router.record import Record


def may_say(worker: str, message: WorkerMessage, records: Mapping[str, Record]) -> bool:
    """False for what a worker says of a live request that it was never asked to work on: it is not its to end."""
    match message:
        case messages.Reserved(reservation):
            record = records.get(reservation.request_id)
        case (
            messages.ReservationRefused(request_id=request_id)
            | messages.HandoffEnded(request_id=request_id)
            | messages.HandoffCommitted(request_id=request_id)
            | messages.HandoffCorrupt(request_id=request_id)
            | messages.RequestFailed(request_id=request_id)
        ):
            record = records.get(request_id)
        case _:
            return True
    return record is None or worker in record.given


def life_event(worker: str, message: WorkerMessage) -> tuple[str, life_events.Event] | None:
    """What the request's life cycle hears of it, with the request's id."""
    match message:
        case messages.Reserved(reservation):
            return reservation.request_id, life_events.PagesReserved(reservation)
        case messages.ReservationRefused(reservation_id, request_id, _):
            return request_id, life_events.PagesRefused(reservation_id)
        case messages.HandoffEnded(request_id, reservation_id, outcome, report, reason):
            return request_id, life_events.SourceEnded(reservation_id, outcome, report, reason)
        case messages.HandoffCorrupt(request_id, reservation_id, _):
            return request_id, life_events.Corrupt(reservation_id)
        case messages.RequestFailed(request_id, error, text):
            return request_id, life_events.Failed(error_from_name(error, text), worker)
    return None
