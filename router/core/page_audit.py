"""Leak check: every page that a worker holds belongs to a live request; the rest is prefix cache.

A look compares each worker's last report with the live requests. Messages in flight make the two differ, so one look
proves nothing: a difference in every look of a few seconds is a leak. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from baton.protocol.session_messages import DetachedSequence
from baton.router.core.live_request import LiveRequest
from baton.router.core.orphans import Orphans
from baton.router.core.transfers import Transfer, Transfers
from baton.router.policy.cluster_state import ClusterState, WorkerView
from baton.router.policy.decode_target import growth_tokens


@dataclass(frozen=True, slots=True)
class WorkerLook:
    """One worker at one moment. `named` are the ids in its report → the most pages each may hold there, None where
    no live request accounts for it."""

    worker: str
    incarnation: str
    report: int  # number of its latest report
    pages_total: int
    pages_free: int
    pages_cached: int
    pages_in_use: int
    named: Mapping[str, int | None]

    @property
    def key(self) -> tuple[str, str]:
        return self.worker, self.incarnation


@dataclass(frozen=True, slots=True)
class Look:
    """The cluster at one moment."""

    workers: tuple[WorkerLook, ...]
    live_requests: int
    unanswered_handoffs: int  # send orders whose end was not reported yet
    lost_handoffs: frozenset[str]  # of these: reservations whose source is alive but is not sending into them


@dataclass(frozen=True, slots=True)
class WorkerVerdict:
    """One worker over the whole time."""

    latest: WorkerLook
    pages_accounted: int  # the most that the live requests it names may hold; shared prefix pages count for each
    unknown: tuple[str, ...]  # reported requests and reservations that no live request accounts for
    pages_leaked: int  # held but not accounted for
    reported: bool  # it has reported since the first look; else the check is inconclusive


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found in every look."""

    workers: tuple[WorkerVerdict, ...]
    live_requests: int
    unanswered_handoffs: int
    lost_handoffs: tuple[str, ...]

    @property
    def clean(self) -> bool:
        workers = all(one.reported and not one.unknown and not one.pages_leaked for one in self.workers)
        return workers and not self.lost_handoffs


@dataclass(eq=False)
class PageAudit:
    """Reads the core's state, and changes nothing."""

    state: ClusterState
    requests: Mapping[str, LiveRequest]
    transfers: Transfers
    orphans: Orphans

    def look(self) -> Look:
        """The cluster's state now."""
        sending = self.transfers.unanswered()
        lost = [one for one, transfer in sending.items() if self._does_not_send(transfer)]
        reserved = {one: live for live in self.requests.values() for one in live.reservation_ids}
        looks = tuple(self._worker(view, reserved) for _, view in sorted(self.state.workers.items()))
        return Look(looks, len(self.requests), len(sending), frozenset(lost))

    def _worker(self, view: WorkerView, reserved: Mapping[str, LiveRequest]) -> WorkerLook:
        load = view.load
        orphans = self.orphans.on(view.name)
        requests = {one: self._most_pages(view, one, orphans.get(one)) for one in load.request_ids}
        reservations = {one: self._most_reserved(view, one, reserved.get(one)) for one in load.reservation_ids}
        return WorkerLook(
            worker=view.name,
            incarnation=view.info.incarnation,
            report=load.sequence_number,
            pages_total=load.pages_total,
            pages_free=load.pages_free,
            pages_cached=load.pages_cached,
            pages_in_use=load.pages_in_use,
            named={**requests, **reservations},
        )

    def _most_pages(self, view: WorkerView, request_id: str, orphan: DetachedSequence | None) -> int | None:
        if orphan is not None:
            return -(-orphan.limit_tokens // view.info.page_size)
        record = self.requests.get(request_id)
        if record is None or view.name not in record.holders:
            return view.info.num_pages if self.transfers.reads_for(view.name, request_id) else None
        return _pages(record, view)

    def _most_reserved(self, view: WorkerView, reservation_id: str, live: LiveRequest | None) -> int | None:
        """A reservation outlives its request until no write into it is possible."""
        if live is not None:
            return _pages(live, view)
        return view.info.num_pages if self.transfers.holds(reservation_id) else None

    def _does_not_send(self, transfer: Transfer) -> bool:
        view = self.state.workers.get(transfer.source)
        return view is not None and transfer.request_id not in view.load.request_ids


def _pages(record: LiveRequest, view: WorkerView) -> int:
    """The most pages the request may hold there: its tokens, the next one, and its growth pages from a migration."""
    tokens, size = record.num_tokens + 1, view.info.page_size
    if record.migrating or record.migrations or record.adopted:
        tokens = min(tokens + growth_tokens(tokens, size), record.max_total_tokens)
    return -(-tokens // size)


@dataclass(eq=False)
class _Watched:
    """One worker in the looks so far."""

    first: int  # number of its report in the first look
    known: dict[str, int] = field(default_factory=dict)  # pages of everything that was ever accounted for
    unknown: set[str] | None = None  # in every look so far
    leaked: int | None = None  # the least so far
    accounted: int = 0

    def see(self, look: WorkerLook) -> None:
        self.known.update({name: pages for name, pages in look.named.items() if pages is not None})
        # A request that has just ended or migrated still counts with its earlier pages.
        self.accounted = sum(self.known.get(name, 0) for name in look.named)
        leaked = max(0, look.pages_in_use - self.accounted)
        unknown = {name for name, pages in look.named.items() if pages is None}
        self.leaked = leaked if self.leaked is None else min(self.leaked, leaked)
        self.unknown = unknown if self.unknown is None else self.unknown & unknown


def judge(looks: Sequence[Look]) -> Verdict:
    """What was found in every look (at least one). Only looks at a worker's present incarnation count."""
    watched: dict[tuple[str, str], _Watched] = {}
    for look in looks:
        for one in look.workers:
            watched.setdefault(one.key, _Watched(one.report)).see(one)
    verdicts = []
    for one in looks[-1].workers:
        seen = watched[one.key]
        reported = one.report > seen.first
        unknown = tuple(sorted(seen.unknown or ()))
        verdicts.append(WorkerVerdict(one, seen.accounted, unknown, seen.leaked or 0, reported))
    lost = frozenset.intersection(*(look.lost_handoffs for look in looks))
    last = looks[-1]
    return Verdict(tuple(verdicts), last.live_requests, last.unanswered_handoffs, tuple(sorted(lost)))
