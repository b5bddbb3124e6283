"""Which workers belong to the cluster: who is new, silent, given up, back again, or dies too often. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from baton.config.schema import RouterSection
from baton.protocol.messages import HandoffEnded, PeerJoined, PeerLeft, Register, Rejoin, Welcome
from baton.router.core.breaker import UNKNOWN, Breaker, Process
from baton.router.core.commands import Command, Kill, Tell
from baton.router.core.peer_links import PeerLinks
from baton.router.core.quarantine import Quarantine
from baton.router.policy.cluster_state import ClusterState

REPORT_INTERVAL_S = 0.5
KILL_AFTER_S = 10.0  # of silence; if it does not come back by then, a worker's process is ended


@dataclass(slots=True)
class _Away:
    since_s: float  # or since its end was last asked for
    process: Process


@dataclass(eq=False)
class Membership:
    """A worker is known by its name, and one life of it by its incarnation: messages of another one are not heard."""

    state: ClusterState
    config: RouterSection
    quarantine: Quarantine = field(default_factory=Quarantine)
    _away: dict[str, _Away] = field(default_factory=dict)  # given up, until known to be gone or back
    admitted: list[Register] = field(default_factory=list)  # whose sequences nobody has looked at yet
    _waiting: dict[str, Register] = field(default_factory=dict)  # back, but not to be given work yet
    breaker: Breaker = field(default_factory=Breaker)
    links: PeerLinks = field(init=False)
    _looked_s: float = -math.inf  # for silence

    def __post_init__(self) -> None:
        self.links = PeerLinks(self.state, self.quarantine)

    def knows(self, worker: str, incarnation: str) -> bool:
        """Whether that life of the worker is in the cluster."""
        view = self.state.workers.get(worker)
        return view is not None and view.info.incarnation == incarnation

    def stranger(self, worker: str, incarnation: str, router_id: str) -> list[Tell]:
        """The answer to a worker that speaks as nobody we know: it shall register anew."""
        waiting = self._waiting.get(worker)
        if waiting is not None and waiting.info.incarnation == incarnation:
            return []
        return [Tell(worker, Rejoin(incarnation, router_id))]

    def silent(self, now: float) -> list[str]:
        """Workers to give up. What a router did not hear while it stood still itself was no silence."""
        stood_still_s = now - self._looked_s
        if self.config.lost_after_s / 2 < stood_still_s < math.inf:
            for view in self.state.workers.values():
                view.heard_s = min(view.heard_s + stood_still_s, now)
        self._looked_s = now
        since_s = now - self.config.lost_after_s
        return sorted(view.name for view in self.state.workers.values() if view.heard_s < since_s)

    def lose(self, worker: str, certain: bool, now: float, died: bool = True) -> list[Tell] | None:
        """Give a worker up; `certain` where what it did is known to have ended. None if it was given up before.

        Not `died`: it has gone on purpose, or its connection broke. No fault of its own, nor of its requests.
        """
        view = self.state.remove(worker)
        if view is None:
            return None
        orders = [Tell(other, PeerLeft(view.info.endpoint.agent)) for other in sorted(self.state.workers)]
        self.links.forget(worker)
        process = (view.info.host, view.info.pid)
        if died:
            self.breaker.lost(worker, UNKNOWN if certain else process, now)
        if certain:
            return orders + self.ended(worker, now)
        self._away[worker] = _Away(now, process)
        return orders

    def ended(self, worker: str, now: float) -> list[Tell]:
        """Its process has ended."""
        self._away.pop(worker, None)
        return self.quarantine.died(worker, self.state.workers, now)

    def handoff_ended(self, source: str, answer: HandoffEnded) -> list[Tell]:
        """The source has answered a send order: what waited for that may be released."""
        self.links.ended(source, answer.reservation_id, answer.outcome)
        return self.quarantine.ended(answer.reservation_id)

    def tick(self, now: float) -> list[Command]:
        """What time brings: the end of workers that stay silent, peers that are linked anew."""
        return [*self.kills(now), *self.quarantine.expired(now), *self.links.due(now)]

    def kills(self, now: float) -> list[Kill]:
        """Silent workers that do not come back: whoever can shall end their process, so that it is certain."""
        overdue = sorted(name for name, away in self._away.items() if now - away.since_s > KILL_AFTER_S)
        for name in overdue:
            self._away[name].since_s = now
        return [Kill(name) for name in overdue]

    def returned(self, message: Register, now: float) -> list[Tell]:
        """A worker registers: whatever it did before, it does no more. `admit` tells when it may begin."""
        name, process = message.info.name, (message.info.host, message.info.pid)
        self._waiting[name] = message
        self.breaker.returned(name, process)
        away = self._away.pop(name, None)
        if away is not None and process[1] and away.process != process:
            return self.quarantine.died(name, self.state.workers, now)
        return self.quarantine.gone(name)

    def admit(self, router_id: str, now: float) -> list[Tell]:
        """Welcome the workers that may be given work from now on; they and the others hear of each other."""
        orders = []
        for name, message in sorted(self._waiting.items()):
            if self.quarantine.written_into(name):
                continue
            del self._waiting[name]
            info = message.info
            self.admitted.append(message)
            orders.append(Tell(name, Welcome(router_id, REPORT_INTERVAL_S, info.incarnation)))
            for other, view in sorted(self.state.workers.items()):
                orders.append(Tell(other, PeerJoined(info.endpoint, info.host)))
                orders.append(Tell(name, PeerJoined(view.info.endpoint, view.info.host)))
            self.state.register(info, now)
            if self._breaks(name, now):
                self.state.cordon(name)
        return orders

    def _breaks(self, worker: str, now: float) -> bool:
        """Whether it was lost too often to be trusted with requests, and others can do without it."""
        others = [view.name for view in self.state.pool(self.state.workers[worker].role) if view.name != worker]
        return self.breaker.tripped(worker, now) and bool(others)
