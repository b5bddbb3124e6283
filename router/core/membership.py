"""Which workers belong to the cluster: new, timed out, lost, returned, or dying too often. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from baton.config.schema import RouterSection
from baton.protocol.session_messages import PeerJoined, PeerLeft, Register, RegisterAck, Reregister
from baton.router.core.breaker import UNKNOWN, Breaker, Process
from baton.router.core.commands import Command, Kill, SendToWorker
from baton.router.core.link_rates import LinkRates
from baton.router.core.transfers import Transfers
from baton.router.policy.cluster_state import ClusterState

REPORT_INTERVAL_S = 0.5
KILL_AFTER_S = 10.0  # of silence; if it does not return by then, a worker's process is killed


@dataclass(slots=True)
class _Away:
    since_s: float  # or since its process was last ordered killed
    process: Process


@dataclass(eq=False)
class Membership:
    """A worker is known by name and incarnation; messages of another incarnation are ignored."""

    state: ClusterState
    config: RouterSection
    transfers: Transfers = field(init=False)
    rates: LinkRates = field(init=False)
    _away: dict[str, _Away] = field(default_factory=dict)  # lost, until known to have ended or returned
    admitted: list[Register] = field(default_factory=list)  # their kept sequences are not processed yet
    _waiting: dict[str, Register] = field(default_factory=dict)  # returned, but not ready for work
    breaker: Breaker = field(default_factory=Breaker)
    _looked_s: float = -math.inf  # of the last check for timeouts

    def __post_init__(self) -> None:
        self.transfers, self.rates = Transfers(self.state), LinkRates(self.state)

    def has_registered(self, worker: str, incarnation: str) -> bool:
        """Whether that incarnation of the worker is registered."""
        view = self.state.workers.get(worker)
        return view is not None and view.info.incarnation == incarnation

    def reregister(self, worker: str, incarnation: str, router_id: str) -> list[SendToWorker]:
        """Order an unknown worker to re-register."""
        waiting = self._waiting.get(worker)
        if waiting is not None and waiting.info.incarnation == incarnation:
            return []
        return [SendToWorker(worker, Reregister(incarnation, router_id))]

    def silent(self, now: float) -> list[str]:
        """Workers that have timed out. A pause of the router itself does not count as their silence."""
        stood_still_s = now - self._looked_s
        if self.config.lost_after_s / 2 < stood_still_s < math.inf:
            for view in self.state.workers.values():
                view.last_message_s = min(view.last_message_s + stood_still_s, now)
        self._looked_s = now
        since_s = now - self.config.lost_after_s
        return sorted(view.name for view in self.state.workers.values() if view.last_message_s < since_s)

    def lose(self, worker: str, certain: bool, now: float, died: bool = True) -> list[SendToWorker] | None:
        """Remove a worker; `certain`: its work is known to have ended. None if it was removed before.

        Not `died`: it left on purpose, or its connection broke, which is neither its fault nor its requests'.
        """
        view = self.state.remove(worker)
        if view is None:
            return None
        orders = [SendToWorker(other, PeerLeft(view.info.endpoint.agent)) for other in sorted(self.state.workers)]
        self.transfers.on_left(worker)
        self.rates.on_left(worker)
        process = (view.info.host, view.info.pid)
        if died:
            self.breaker.lost(worker, UNKNOWN if certain else process, now)
        if certain:
            return orders + self.ended(worker, now)
        self._away[worker] = _Away(now, process)
        return orders

    def ended(self, worker: str, now: float) -> list[SendToWorker]:
        """Its process has ended."""
        self._away.pop(worker, None)
        return self.transfers.on_died(worker, self.state.workers, now)

    def tick(self, now: float) -> list[Command]:
        """What is due: killing workers that stay silent, reconnecting peers."""
        return [*self.kills(now), *self.transfers.due(now)]

    def kills(self, now: float) -> list[Kill]:
        """Timed-out workers that do not return: kill their processes, so that their end is certain."""
        overdue = sorted(name for name, away in self._away.items() if now - away.since_s > KILL_AFTER_S)
        for name in overdue:
            self._away[name].since_s = now
        return [Kill(name) for name in overdue]

    def returned(self, message: Register, now: float) -> list[SendToWorker]:
        """A worker registers, so its earlier work has ended. `admit` decides when it gets work."""
        name, process = message.info.name, (message.info.host, message.info.pid)
        self._waiting[name] = message
        self.breaker.returned(name, process)
        away = self._away.pop(name, None)
        if away is not None and process[1] and away.process != process:
            return self.transfers.on_died(name, self.state.workers, now)
        return self.transfers.on_returned(name)

    def admit(self, router_id: str, now: float) -> list[SendToWorker]:
        """Admit the workers that may now get work, and introduce them and the others to each other."""
        orders = []
        for name, message in sorted(self._waiting.items()):
            if self.transfers.written_into(name):
                continue
            del self._waiting[name]
            info = message.info
            joined = PeerJoined(info.endpoint, info.host)
            self.admitted.append(message)
            orders.append(SendToWorker(name, RegisterAck(router_id, REPORT_INTERVAL_S, info.incarnation)))
            for other, view in sorted(self.state.workers.items()):
                orders.append(SendToWorker(other, joined))
                orders.append(SendToWorker(name, PeerJoined(view.info.endpoint, view.info.host)))
            self.state.register(info, now)
            if self._breaks(name, now):
                self.state.cordon(name)
        return orders

    def _breaks(self, worker: str, now: float) -> bool:
        """Whether it was lost too often to get requests, and its pool has another worker."""
        others = [view.name for view in self.state.pool(self.state.workers[worker].role) if view.name != worker]
        return self.breaker.tripped(worker, now) and bool(others)
