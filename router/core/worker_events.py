"""Translates worker messages into events of their requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from baton.protocol import messages
from baton.protocol.errors import error_from_name
from baton.protocol.messages import WorkerMessage
from baton.router.core import life_events
from baton.router.core.live_request import LiveRequest
from baton.router.core.operation import PROBE
from baton.router.core.partition_tracker import PartitionTracker


def may_report(worker: str, message: WorkerMessage, records: Mapping[str, LiveRequest]) -> bool:
    """False if the worker was never assigned this live request; its messages about it are ignored."""
    match message:
        case messages.Reserved(reservation):
            record = records.get(reservation.request_id)
        case (
            messages.ReservationRefused(request_id=request_id)
            | messages.HandoffEnded(request_id=request_id)
            | messages.HandoffStalled(request_id=request_id)
            | messages.HandoffCommitted(request_id=request_id)
            | messages.HandoffCorrupt(request_id=request_id)
            | messages.RequestFailed(request_id=request_id)
        ):
            record = records.get(request_id)
        case _:
            return True
    return record is None or worker in record.assignees


def life_events_of(worker: str, message: WorkerMessage, links: PartitionTracker) -> list[tuple[str, life_events.Event]]:
    """The life-cycle events of a message, by request id; none for probes. `links`: their state before it."""
    event = _life_event(worker, message, links)
    return [] if event is None or event[0].startswith(PROBE) else [event]


def _life_event(worker: str, message: WorkerMessage, links: PartitionTracker) -> tuple[str, life_events.Event] | None:
    match message:
        case messages.Reserved(reservation):
            return reservation.request_id, life_events.PagesReserved(reservation)
        case messages.ReservationRefused(reservation_id, request_id, _):
            return request_id, life_events.PagesRefused(reservation_id)
        case messages.HandoffEnded(request_id, reservation_id, outcome, report, reason):
            unreachable = links.unreachable(reservation_id, worker)
            return request_id, life_events.SourceEnded(reservation_id, outcome, report, reason, unreachable)
        case messages.HandoffStalled(request_id, reservation_id):
            return request_id, life_events.HandoffStalled(reservation_id)
        case messages.HandoffCorrupt(request_id, reservation_id, _):
            return request_id, life_events.Corrupt(reservation_id)
        case messages.RequestFailed(request_id, error, text):
            return request_id, life_events.Failed(error_from_name(error, text), worker)
    return None
