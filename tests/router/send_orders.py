"""Send orders of handoffs, and their answers, as the core gives them to `Transfers`."""

from __future__ import annotations

from baton.protocol.handoff import HandoffOutcome, Reservation
from baton.protocol.messages import HandoffEnded, SendPages
from baton.router.core.commands import SendToWorker
from baton.router.core.transfers import Transfers


def began(transfers: Transfers, reservation_id: str, source: str, target: str) -> None:
    """The source was told to write into the target's reservation."""
    request_id = reservation_id.partition("/")[0]
    reservation = Reservation(reservation_id, request_id, f"{target}:1", (), (), 0, 1)
    order = SendToWorker(source, SendPages(request_id, reservation))
    assert transfers.outgoing(order, target) == [order]


def ended(transfers: Transfers, reservation_id: str, source: str) -> list[SendToWorker]:
    """The source has written everything."""
    request_id = reservation_id.partition("/")[0]
    return transfers.on_ended(source, HandoffEnded(request_id, reservation_id, HandoffOutcome.DELIVERED))
