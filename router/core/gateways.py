"""Which gateways belong to the cluster, and which workers cannot reach which of them. Pure.

Gateways and workers are introduced to each other: tokens go from a worker straight to a gateway. A gateway that is lost
leaves its requests running: another one may claim them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from baton.config.schema import RouterSection
from baton.protocol.gateway_messages import (
    GatewayInfo,
    GatewayLoad,
    GatewayRegistered,
    RegisterGateway,
    ServingPools,
    WorkerJoined,
    WorkerLeft,
)
from baton.protocol.session_messages import GatewayJoined, GatewayLeft, Reregister
from baton.protocol.worker import RoleName
from baton.router.core.commands import Kill, SendToGateway, SendToWorker
from baton.router.core.membership import KILL_AFTER_S
from baton.router.policy.cluster_state import ClusterState

LOST_AFTER = 2.0  # times `router.lost_after_s`: a gateway reports half as often as a worker
ASK_EVERY_S = 1.0  # an unknown gateway to register
Orders = list[SendToWorker | SendToGateway]


@dataclass(slots=True, eq=False)
class GatewayView:
    """One gateway, as of its latest messages."""

    info: GatewayInfo
    last_message_s: float
    load: GatewayLoad = field(default_factory=lambda: GatewayLoad(0, 0, 0, 0.0))


@dataclass(eq=False)
class Gateways:
    """A gateway is known by name and incarnation. `public_key` gives the CURVE key of a process by its name."""

    state: ClusterState
    config: RouterSection
    public_key: Callable[[str], str]
    started_s: float  # Of the router
    by_name: dict[str, GatewayView] = field(default_factory=dict)
    _away: dict[str, float] = field(default_factory=dict)  # lost, not known to have ended → when, or its last `Kill`
    _asked: dict[str, tuple[str, float]] = field(default_factory=dict)  # to register: incarnation and when
    _reported: dict[tuple[str, str], float] = field(default_factory=dict)  # (gateway, worker) out of reach → since when
    _looked_s: float = -math.inf  # of the last check for timeouts
    _pools: ServingPools | None = None  # as the gateways were last sent it
    _roles: int = -1  # `ClusterState.role_changes` as of then

    def __contains__(self, gateway: object) -> bool:
        return gateway in self.by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def has_process(self, name: str) -> bool:
        """Whether it is a gateway whose process may be there: registered, or lost and not known to have ended."""
        return name in self.by_name or name in self._away

    def has_registered(self, gateway: str, incarnation: str) -> bool:
        """Whether that incarnation of the gateway is registered."""
        view = self.by_name.get(gateway)
        return view is not None and view.info.incarnation == incarnation

    def reregister(self, gateway: str, incarnation: str, router_id: str, now: float) -> Orders:
        """Ask an unknown gateway to register, once in a while."""
        asked, asked_s = self._asked.get(gateway, ("", -math.inf))
        if asked == incarnation and now < asked_s + ASK_EVERY_S:
            return []
        self._asked[gateway] = incarnation, now
        return [SendToGateway(gateway, Reregister(incarnation, router_id))]

    def register(self, message: RegisterGateway, router_id: str, now: float) -> Orders:
        """A gateway joins, or (the same incarnation) has a new connection."""
        info = message.info
        orders: Orders = []
        if not self.has_registered(info.name, info.incarnation):
            orders += self.lose(info.name)
            self._away.pop(info.name, None)
            self.by_name[info.name] = GatewayView(info, now)
            orders += [SendToWorker(worker, self._joined(info)) for worker in sorted(self.state.workers)]
        self._asked.pop(info.name, None)
        registered = SendToGateway(info.name, GatewayRegistered(router_id, info.incarnation))
        workers = [SendToGateway(info.name, self._worker(worker)) for worker in sorted(self.state.workers)]
        pools = [] if self._pools is None else [SendToGateway(info.name, self._pools)]
        return [registered, *workers, *pools, *orders]

    def lose(self, gateway: str, away_since_s: float | None = None) -> Orders:
        """A gateway has ended or, since `away_since_s`, is silent or disconnected."""
        view = self.by_name.pop(gateway, None)
        if away_since_s is None:
            self._away.pop(gateway, None)
        if view is None:
            return []
        if away_since_s is not None:
            self._away[gateway] = away_since_s
        for pair in [pair for pair in self._reported if pair[0] == gateway]:
            del self._reported[pair]
        self.state.cut.pop(gateway, None)
        left = GatewayLeft(gateway, view.info.incarnation)
        return [SendToWorker(worker, left) for worker in sorted(self.state.workers)]

    def silent(self, now: float) -> list[str]:
        """Gateways that have timed out. A pause of the router itself does not count as their silence."""
        lost_after_s = LOST_AFTER * self.config.lost_after_s
        stood_still_s = now - self._looked_s
        if lost_after_s / 2 < stood_still_s < math.inf:
            for view in self.by_name.values():
                view.last_message_s = min(view.last_message_s + stood_still_s, now)
        self._looked_s = now
        return sorted(name for name, view in self.by_name.items() if view.last_message_s < now - lost_after_s)

    def kills(self, now: float) -> list[Kill]:
        """Gateways that do not return: the kernel gives their processes connections for as long as they exist."""
        overdue = sorted(name for name, since_s in self._away.items() if now - since_s > KILL_AFTER_S)
        self._away |= dict.fromkeys(overdue, now)
        return [Kill(name) for name in overdue]

    def on_worker_joined(self, worker: str) -> Orders:
        """Introduce a worker and the gateways to each other, the gateways first."""
        names = sorted(self.by_name)
        joined = [SendToWorker(worker, self._joined(self.by_name[name].info)) for name in names]
        return [*(SendToGateway(name, self._worker(worker)) for name in names), *joined]

    def on_worker_left(self, worker: str) -> Orders:
        """A worker has left the cluster."""
        for pair in [pair for pair in self._reported if pair[1] == worker]:
            self.on_reached(*pair)
        return [SendToGateway(gateway, WorkerLeft(worker)) for gateway in sorted(self.by_name)]

    @property
    def pools(self) -> ServingPools:
        """Which pools have a worker that serves now."""
        prefill, decode = (self.state.pool(role, RoleName.MIXED) for role in (RoleName.PREFILL, RoleName.DECODE))
        return ServingPools(bool(prefill), bool(decode))

    def changed_pools(self, now: float) -> Orders:
        """Send every gateway which pools have a worker that serves, if that has changed."""
        if self._roles == self.state.role_changes:
            return []
        pools = self.pools
        if self._pools is None and pools.missing and now < self.started_s + self.config.no_workers_grace_s:
            return []
        self._roles = self.state.role_changes
        if pools == self._pools:
            return []
        self._pools = pools
        return [SendToGateway(name, pools) for name in sorted(self.by_name)]

    def on_unreachable(self, gateway: str, worker: str, now: float) -> None:
        """The worker has had no connection to the gateway for a while: place no request of the one on the other."""
        self._reported[gateway, worker] = now
        self.state.cut.setdefault(gateway, set()).add(worker)

    def on_reached(self, gateway: str, worker: str) -> None:
        """They have a connection again."""
        self._reported.pop((gateway, worker), None)
        workers = self.state.cut.get(gateway, set())
        workers.discard(worker)
        if not workers:
            self.state.cut.pop(gateway, None)

    def cut_off(self, gateway: str) -> Iterable[str]:
        """Workers that are out of the gateway's reach though it lives: it has sent a message since they reported that.

        None while no worker reaches it: then its sequences are better kept where they are.
        """
        view = self.by_name.get(gateway)
        if view is None or not self._reported or self.state.workers.keys() <= self.state.cut.get(gateway, set()):
            return []
        return sorted(
            worker
            for (name, worker), since_s in self._reported.items()
            if name == gateway and view.last_message_s > since_s
        )

    def _joined(self, info: GatewayInfo) -> GatewayJoined:
        return GatewayJoined(info.name, info.incarnation, info.worker_address, self.public_key(info.name))

    def _worker(self, worker: str) -> WorkerJoined:
        return WorkerJoined(worker, self.public_key(worker))
