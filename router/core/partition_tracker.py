"""Pairs of workers that cannot exchange pages, though the router reaches both. Pure.

    reachable ──a write stalls──► unreachable ──every write between them has ended well──► reachable
        └───────a write fails───► unreachable ──every write has ended──► both disconnect ─► reconnect ──► reachable

A stalled write is not cancelled: it may arrive whenever the network is back (write_fence.py holds its pages
until it has ended), and its end shows that the network is back. A failed connection does not recover by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.protocol.handoff import HandoffOutcome
from baton.protocol.link_rate import slow_link
from baton.protocol.messages import LinkMeasured, PeerJoined, PeerLeft
from baton.protocol.worker import Endpoint
from baton.router.core.commands import SendToWorker
from baton.router.core.write_fence import WriteFence
from baton.router.policy.cluster_state import ClusterState

RELINK_AFTER_S = 10.0  # between dropping each other and the next try

Pair = tuple[str, str]  # in the order of names


@dataclass(slots=True, eq=False)
class _Broken:
    failed: bool = False  # the connection has failed
    dropped_s: float | None = None  # when both were told to drop each other


@dataclass(frozen=True, slots=True)
class LinkRate:
    """The measured rate of pages from one worker to another."""

    source: str
    target: str
    num_bytes: int
    seconds: float
    same_host: bool
    warning: str  # one sentence; empty: none


@dataclass(eq=False)
class PartitionTracker:
    """Unreachable pairs of workers (`ClusterState.unreachable` has them for placement), and measured rates."""

    state: ClusterState
    fence: WriteFence
    _broken: dict[Pair, _Broken] = field(default_factory=dict)
    _measured: dict[tuple[str, str], LinkMeasured] = field(default_factory=dict)  # by (source, target)

    def stalled(self, source: str, reservation_id: str) -> None:
        """A write of the worker into the reservation is stalled."""
        self.fence.stalled(reservation_id)
        self._break(source, reservation_id, failed=False)

    def ended(self, source: str, reservation_id: str, outcome: HandoffOutcome) -> None:
        """The worker's handoff into the reservation is over; call it before the fence forgets it."""
        if outcome is HandoffOutcome.FAILED:
            self._break(source, reservation_id, failed=True)

    def _break(self, source: str, reservation_id: str, failed: bool) -> None:
        target = self.fence.target(reservation_id, source)
        if target is None or not {source, target} <= self.state.workers.keys():
            return
        broken = self._broken.setdefault(_pair(source, target), _Broken())
        broken.failed |= failed
        self.state.set_reachable(source, target, False)

    def unreachable(self, reservation_id: str, source: str) -> bool:
        """Whether the worker is known to be unable to reach the reservation's worker."""
        target = self.fence.target(reservation_id, source)
        return target is not None and _pair(source, target) in self._broken

    def forget(self, worker: str) -> None:
        """It has left; a worker that returns under the name reconnects with all others."""
        for pair in [pair for pair in self._broken if worker in pair]:
            self._mend(pair)
        for link in [link for link in self._measured if worker in link]:
            del self._measured[link]

    def measured(self, source: str, message: LinkMeasured) -> None:
        """The worker reports its rate to a peer; a rate to a worker that has left is ignored."""
        target = message.agent.rpartition(":")[0]
        if target in self.state.workers and self._endpoint(target).agent == message.agent:
            self._measured[source, target] = message

    def rates(self) -> list[LinkRate]:
        """The measured links, by the names of source and target."""
        rates = []
        for (source, target), one in sorted(self._measured.items(), key=lambda item: item[0]):
            infos = self.state.workers[source].info, self.state.workers[target].info
            same_host = bool(infos[0].host) and infos[0].host == infos[1].host
            on_gpus = all(info.device != "cpu" for info in infos)
            warning = slow_link(source, target, one.bytes_per_s, same_host and on_gpus)
            rates.append(LinkRate(source, target, one.num_bytes, one.seconds, same_host, warning))
        return rates

    def due(self, now: float) -> list[SendToWorker]:
        """The messages due to workers of broken pairs."""
        orders: list[SendToWorker] = []
        for pair, broken in sorted(self._broken.items(), key=lambda item: item[0]):
            if self.fence.between(*pair):
                continue
            if broken.failed and broken.dropped_s is None:
                broken.dropped_s = now
                orders += [SendToWorker(name, PeerLeft(self._endpoint(other).agent)) for name, other in _both(pair)]
            elif broken.dropped_s is None:
                self._mend(pair)
            elif now - broken.dropped_s >= RELINK_AFTER_S:
                self._mend(pair)
                orders += [SendToWorker(name, self._joined(other)) for name, other in _both(pair)]
        return orders

    def _joined(self, worker: str) -> PeerJoined:
        return PeerJoined(self._endpoint(worker), self.state.workers[worker].info.host)

    def _endpoint(self, worker: str) -> Endpoint:
        return self.state.workers[worker].info.endpoint

    def _mend(self, pair: Pair) -> None:
        del self._broken[pair]
        self.state.set_reachable(*pair, True)


def _pair(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)


def _both(pair: Pair) -> tuple[Pair, Pair]:
    return pair, (pair[1], pair[0])
