"""No page is lost: when no request is left, nothing is held at any worker or in the router's view of it."""

from __future__ import annotations

from collections.abc import Iterable

from baton.router.core.core import RouterCore
from baton.simulator.token_checker import Violation
from baton.simulator.virtual_gateway import VirtualGateway
from baton.simulator.virtual_worker import VirtualWorker


def check_nothing_is_held(
    core: RouterCore, workers: Iterable[VirtualWorker], gateways: Iterable[VirtualGateway]
) -> None:
    """All pages are back, and neither the router nor a gateway remembers a request. Raises `Violation`."""
    for gateway in gateways:
        if gateway.session.streams:
            raise Violation(f"{gateway.name} still has the streams {sorted(gateway.session.streams)}")
    if core.live or len(core.adoption.orphans):
        raise Violation(f"the router still has {core.live} requests and {len(core.adoption.orphans)} orphans")
    for worker in workers:
        worker.state.pool.check_integrity()
        if worker.state.pool.num_in_use:
            raise Violation(f"{worker.name} holds {worker.state.pool.num_in_use} pages")
        occupancy = worker.role.occupancy()
        if occupancy.request_ids or occupancy.reservation_ids or occupancy.swapped or worker.state.streams.num_live:
            raise Violation(f"{worker.name} still has {worker.state.streams.num_live} live streams, {occupancy}")
    for view in core.state.workers.values():
        if view.assigned or view.reserved or view.running:
            raise Violation(f"the router books requests at {view.name}: {view.assigned, view.reserved, view.running}")
