"""Which worker may still write into pages of which other, and which pairs of workers cannot exchange pages. Pure.

Pages are not reused before every writer into them is known to have ended. A worker that timed out may be dead or only
stopped; if it resumes, so does its current write. So a reservation that it was writing into is released only when its
process has ended, or it came back under a new incarnation, which it takes after its writes have ended. And a worker
that comes back gets work only when no write into the reservations of its former incarnation is possible.

    SENDING ──no progress──► STALLED            ──the source answers──► over: the release goes out
       └──────its process has ended──────► ORPHANED ──ORPHAN_S later──┘

A dead writer's kernel still delivers what it had buffered (4 MB a connection, measured) once the network is back. So if
a write was stalled, or its target away, when its writer died, the pages are held until the kernel gives up.

    reachable ──a write stalls──► unreachable ──every write between them has ended well──► reachable
        └───────a write fails───► unreachable ──every write has ended──► both disconnect ─► reconnect ──► reachable

A stalled write is not cancelled: it may arrive whenever the network is back, and its end shows that the network is
back. A failed connection does not recover by itself.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from baton.protocol.handoff import HandoffOutcome
from baton.protocol.messages import HandoffEnded, Release, SendPages
from baton.protocol.session_messages import PeerJoined, PeerLeft
from baton.protocol.worker import Endpoint
from baton.router.core.commands import SendToWorker
from baton.router.policy.cluster_state import ClusterState

# Linux gives up 8 retries (tcp_orphan_retries) after 102 s, but looks when it would retry: at most 120 s later.
ORPHAN_S = 240.0
RELINK_AFTER_S = 10.0  # between dropping each other and the next try

Pair = tuple[str, str]  # in the order of names


@dataclass(slots=True, eq=False)
class Transfer:
    """One unanswered send order."""

    request_id: str
    source: str
    target: str
    stalled: bool = False
    target_left: bool = False  # the target's incarnation is gone, and no release is for the next one
    target_ended: bool = False  # the target's process has ended: no page of it can be written any more
    orphaned_until_s: float = math.inf  # set: the source's process has ended, and nothing arrives after this
    release: SendToWorker | None = None  # goes out once no write is possible

    @property
    def orphaned(self) -> bool:
        return self.orphaned_until_s < math.inf


@dataclass(slots=True, eq=False)
class _Broken:
    failed: bool = False  # the connection has failed
    dropped_s: float | None = None  # when both were ordered to drop each other


@dataclass(eq=False)
class Transfers:
    """Every unanswered send order by reservation id, and every unreachable pair (`ClusterState.unreachable` has them
    for placement)."""

    state: ClusterState
    _transfers: dict[str, Transfer] = field(default_factory=dict)
    _broken: dict[Pair, _Broken] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._transfers)

    def outgoing(self, order: SendToWorker, target: str = "") -> list[SendToWorker]:
        """The messages to send in place of `order`: a release waits until no write into its pages is possible.

        `target` is the worker whose pages a `SendPages` is for.
        """
        match order.message:
            case SendPages(request_id, reservation):
                self._transfers[reservation.reservation_id] = Transfer(request_id, order.worker, target)
            case Release(reservation_id) if reservation_id in self._transfers:
                transfer = self._transfers[reservation_id]
                transfer.release = None if transfer.target_left else order
                return []
        return [order]

    def on_stalled(self, source: str, reservation_id: str) -> None:
        """A write of the worker into the reservation is stalled: the rest of it may arrive later."""
        transfer = self._transfers.get(reservation_id)
        if transfer is not None and transfer.source == source:
            transfer.stalled = True
        self._break(source, reservation_id, failed=False)

    def on_ended(self, source: str, answer: HandoffEnded) -> list[SendToWorker]:
        """The source writes no more. Returns the release that may go out now."""
        transfer = self._transfers.get(answer.reservation_id)
        if transfer is not None and transfer.source != source:
            return []
        if answer.outcome is HandoffOutcome.FAILED:
            self._break(source, answer.reservation_id, failed=True)
        return self._over([answer.reservation_id])

    def on_returned(self, source: str) -> list[SendToWorker]:
        """The worker is alive, and its ordered writes have ended. Returns the releases that may go out now."""
        return self._over([one for one, transfer in self._of(source)])

    def on_died(self, worker: str, present: Container[str], now: float) -> list[SendToWorker]:
        """Its process has ended; `present` are the workers that are not away. Returns the releases that may go out now.

        Writes into its own pages have no target any more.
        """
        over = []
        for one, transfer in self._transfers.items():
            transfer.target_ended |= transfer.target == worker
            if transfer.orphaned and transfer.target_ended:
                over.append(one)
        for one, transfer in self._of(worker):
            may_arrive = transfer.stalled or transfer.target not in present
            if may_arrive and not transfer.target_ended:
                transfer.orphaned_until_s = now + ORPHAN_S
            else:
                over.append(one)
        return self._over(over)

    def on_left(self, worker: str) -> None:
        """It has left; a worker that returns under the name reconnects with all others.

        A worker that is only away frees its reservations itself, once its transport is closed. Until then the bytes of
        writes that its peers call off now may arrive, so it gets no release for them, should it still listen.
        """
        for transfer in self._transfers.values():
            if transfer.target == worker:
                transfer.target_left, transfer.release = True, None
        for pair in [pair for pair in self._broken if worker in pair]:
            self._mend(pair)

    def due(self, now: float) -> list[SendToWorker]:
        """Releases whose dead writer's data can no longer arrive, and the messages due to workers of broken pairs."""
        orders = self._over([one for one, transfer in self._transfers.items() if now >= transfer.orphaned_until_s])
        for pair, broken in sorted(self._broken.items(), key=lambda item: item[0]):
            if any({one.source, one.target} == set(pair) for one in self._transfers.values()):
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

    def written_into(self, target: str) -> bool:
        """Whether a write into pages that the worker once reserved is still possible."""
        return any(transfer.target == target for transfer in self._transfers.values())

    def reads_for(self, source: str, request_id: str) -> bool:
        """Whether a write of the worker may still read pages of the request."""
        return any((one.source, one.request_id) == (source, request_id) for one in self._transfers.values())

    def unanswered(self) -> dict[str, Transfer]:
        """Every send order, by reservation id, that its source has yet to answer."""
        return {one: transfer for one, transfer in self._transfers.items() if not transfer.orphaned}

    @property
    def num_fenced(self) -> int:
        """Reservations that are held because the write of a stalled or dead worker may still arrive."""
        return sum(transfer.stalled or transfer.orphaned for transfer in self._transfers.values())

    @property
    def num_broken(self) -> int:
        """Pairs of workers that cannot exchange pages now."""
        return len(self._broken)

    def holds(self, reservation_id: str) -> bool:
        """Whether the reservation is kept open because a write into it is still possible."""
        return reservation_id in self._transfers

    def unreachable(self, source: str, reservation_id: str) -> bool:
        """Whether the worker is known to be unable to reach the reservation's worker."""
        transfer = self._transfers.get(reservation_id)
        known = transfer is not None and transfer.source == source
        return known and transfer is not None and _pair(source, transfer.target) in self._broken

    def _over(self, reservation_ids: list[str]) -> list[SendToWorker]:
        ended = [self._transfers.pop(one, None) for one in reservation_ids]
        return [transfer.release for transfer in ended if transfer is not None and transfer.release is not None]

    def _of(self, source: str) -> Iterator[tuple[str, Transfer]]:
        """Send orders to the worker, which lives or has just died."""
        return ((one, each) for one, each in self._transfers.items() if each.source == source and not each.orphaned)

    def _break(self, source: str, reservation_id: str, failed: bool) -> None:
        transfer = self._transfers.get(reservation_id)
        if transfer is None or transfer.source != source or not {source, transfer.target} <= self.state.workers.keys():
            return
        broken = self._broken.setdefault(_pair(source, transfer.target), _Broken())
        broken.failed |= failed
        self.state.set_reachable(source, transfer.target, False)

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
