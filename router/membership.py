"""Which workers belong to the cluster: who is new, silent, given up, back again, or dies too often. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from cluster.messages import PeerJoined, PeerLeft, Register, Rejoin, Welcome
from router.commands import Kill, Tell
from router.limits import RouterLimits
from router.policy.cluster_state import ClusterState
from router.quarantine import Quarantine

BREAKER_DEATHS, BREAKER_S = 3, 600.0  # a worker that died so often within that time gets nothing until undrained


@dataclass(eq=False)
class Membership:
    """A worker is known by its name, and one life of it by its incarnation: messages of another one are not heard."""

    state: ClusterState
    limits: RouterLimits
    quarantine: Quarantine = field(default_factory=Quarantine)
    _away: dict[str, float] = field(default_factory=dict)  # given up for silence → since when, until known to be gone
    admitted: list[Register] = field(default_factory=list)  # whose sequences nobody has looked at yet
    _waiting: dict[str, Register] = field(default_factory=dict)  # back, but not to be given work yet
    _deaths: dict[str, deque[float]] = field(default_factory=dict)
    _looked_s: float = -math.inf  # for silence

    def stranger(self, worker: str, incarnation: str, router_id: str) -> list[Tell]:
        """The answer to a worker that speaks as nobody we know: it shall register anew."""
        waiting = self._waiting.get(worker)
        if waiting is not None and waiting.info.incarnation == incarnation:
            return []
        return [Tell(worker, Rejoin(incarnation, router_id))]

    def silent(self, now: float) -> list[str]:
        """Workers to give up. What a router did not hear while it stood still itself was no silence."""
        stood_still_s = now - self._looked_s
        if self.limits.lost_after_s / 2 < stood_still_s < math.inf:
            for view in self.state.workers.values():
                view.heard_s = min(view.heard_s + stood_still_s, now)
        self._looked_s = now
        return self.state.silent(now - self.limits.lost_after_s)

    def lose(self, worker: str, certain: bool, now: float, died: bool = True) -> list[Tell] | None:
        """Give a worker up; `certain` where what it did is known to have ended. None if it was given up before.

        Not `died`: it has gone on purpose, or its connection broke. No fault of its own, nor of its requests.
        """
        view = self.state.remove(worker)
        if view is None:
            return None
        orders = [Tell(other, PeerLeft(view.info.endpoint.agent)) for other in sorted(self.state.workers)]
        if died:
            self._deaths.setdefault(worker, deque(maxlen=BREAKER_DEATHS)).append(now)
        self._deaths = {name: moments for name, moments in self._deaths.items() if now - moments[-1] < BREAKER_S}
        if certain:
            return orders + self.gone(worker)
        self._away[worker] = now
        return orders

    def gone(self, worker: str) -> list[Tell]:
        """It is known to write into nobody's pages any more."""
        self._away.pop(worker, None)
        return self.quarantine.gone(worker)

    def kills(self, now: float) -> list[Kill]:
        """Silent workers that do not come back: whoever can shall end their process, so that it is certain."""
        overdue = sorted(name for name, since_s in self._away.items() if now - since_s > self.limits.kill_after_s)
        for name in overdue:
            self._away[name] = now
        return [Kill(name) for name in overdue]

    def returned(self, message: Register) -> list[Tell]:
        """A worker registers: whatever it did before, it does no more. `admit` tells when it may begin."""
        self._waiting[message.info.name] = message
        return self.gone(message.info.name)

    def admit(self, router_id: str, now: float) -> list[Tell]:
        """Welcome the workers that may be given work from now on; they and the others hear of each other."""
        orders = []
        for name, message in sorted(self._waiting.items()):
            if self.quarantine.written_into(name):
                continue
            del self._waiting[name]
            info = message.info
            self.admitted.append(message)
            orders.append(Tell(name, Welcome(router_id, self.limits.report_interval_s, info.incarnation)))
            for other, view in sorted(self.state.workers.items()):
                orders += [Tell(other, PeerJoined(info.endpoint)), Tell(name, PeerJoined(view.info.endpoint))]
            self.state.register(info, now)
            if self._breaks(name, now):
                self.state.cordon(name)
        return orders

    def _breaks(self, worker: str, now: float) -> bool:
        """Whether it has died too often to be trusted with requests, and others can do without it."""
        deaths = [moment for moment in self._deaths.get(worker, ()) if now - moment < BREAKER_S]
        others = [view.name for view in self.state.pool(self.state.workers[worker].role) if view.name != worker]
        return len(deaths) >= BREAKER_DEATHS and bool(others)
