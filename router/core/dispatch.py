"""Waiting requests: for a first worker (the queue), or for a decode worker while the prompt is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from baton.router.core.live_request import Wait
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.decode_target import find_capacity, reachable
from baton.router.policy.fairness import VirtualTokenCounter
from baton.router.policy.placement import Place, Placement, PlacementInput, Refuse, refuse_full

NEVER = (-1, -1)
CROWD = 32  # requests waiting above which passes that place no request are spaced
PAUSE_S, MOST_PAUSE_S = 1.5e-4, 0.01  # after such a pass: for each request waiting, and at most
LARGE = 64  # workers above which all passes are spaced: messages then come so often that the next is never late
PAUSE_PER_PRICE_S = 2e-7  # a pass prices its requests on every worker: so passes take a bounded share of a core
LEAST_PRICED = 16  # requests that a pass counts as at least: some of its cost does not depend on their number


@dataclass(frozen=True, slots=True)
class FoundDecode:
    """The decode worker to reserve pages on for a request whose prompt is being computed."""

    request_id: str
    worker: str


@dataclass(frozen=True, slots=True)
class DecodeUnreachable:
    """No decode worker can be reached from the prefill worker of a request."""

    request_id: str


Decision = Place | Refuse | FoundDecode | DecodeUnreachable


@dataclass(slots=True, eq=False)
class _Sought:
    """A request that needs a decode worker; one with a `home` decodes there and has to leave it."""

    item: PlacementInput
    avoid: str | None  # refused, and has not reported since
    home: str | None


@dataclass(eq=False)
class Dispatch:
    """Asks the policy when a request arrives, a worker begins to take prompts (`ClusterState.openings`), or time has
    passed. Pages and places in batches (`ClusterState.releases`) matter to requests that seek a decode worker, and to
    queued ones while a worker lacks them (`Placement.tight`).

    `dirty` asks it in any case: for due times, and after a change of the policy.
    """

    placement: Placement
    state: ClusterState
    fairness: VirtualTokenCounter = field(default_factory=VirtualTokenCounter)
    dirty: bool = True
    _openings: int = -1  # of the cluster's state in the last pass
    _releases: int = -1
    _searched_at: tuple[int, int] = NEVER  # openings and releases when a search found no decode worker
    _live: Counter[str] = field(default_factory=Counter)  # requests of each tenant, running ones included
    _queue: dict[str, PlacementInput] = field(default_factory=dict)
    _seeking: dict[str, _Sought] = field(default_factory=dict)
    _not_before_s: dict[str, float] = field(default_factory=dict)  # of queued requests
    _next_pass_s: float = 0.0

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def waiting(self) -> Collection[PlacementInput]:
        """Requests not yet assigned to a worker."""
        return self._queue.values()

    def check_queue(self, max_queued: int, now: float) -> None:
        """Raise `Overloaded` when the queue is full."""
        if self.queued >= max_queued:
            raise refuse_full(self.queued, now - min(item.arrival_s for item in self.waiting))

    def arrived(self, tenant: str) -> None:
        """One more request of the tenant is in the system, until `forget`."""
        self.fairness.on_queued(tenant, self._live)
        self._live[tenant] += 1

    def forget(self, request_id: str, tenant: str) -> None:
        """Remove a request and its waiting entries."""
        self.withdraw(request_id)
        self._live[tenant] -= 1
        if not self._live[tenant]:
            del self._live[tenant]

    def wait(self, item: PlacementInput) -> None:
        """Queue a request until the policy places or refuses it."""
        self._queue[item.request_id] = item
        self.dirty = True

    def hold_back(self, request_id: str, until_s: float) -> None:
        """Do not place it before `until_s`: a worker that already has it may be about to join."""
        self._not_before_s[request_id] = until_s

    def queues(self, request_id: str) -> bool:
        """Whether it is in the queue."""
        return request_id in self._queue

    def wait_for(self, wait: Wait, item: PlacementInput) -> None:
        """Replace what the request waits for."""
        self.withdraw(item.request_id)
        if wait.seeks:
            self.seek(item, wait.avoid, wait.home)
        else:
            self.wait(item)

    def seek(self, item: PlacementInput, avoid: str | None, home: str | None = None) -> None:
        """Find a decode worker other than `avoid`, which has just refused, and `home`, which it leaves."""
        self._seeking[item.request_id] = _Sought(item, avoid, home)
        self._searched_at = NEVER

    def withdraw(self, request_id: str) -> None:
        """Stop looking for a decode worker."""
        self._queue.pop(request_id, None)
        self._not_before_s.pop(request_id, None)
        self._seeking.pop(request_id, None)

    def on_report(self, worker: str) -> None:
        """A new load report: a worker that refused may have capacity again."""
        for sought in self._seeking.values():
            if sought.avoid == worker:
                sought.avoid = None
                self._searched_at = NEVER

    def next(self, now: float) -> list[Decision]:
        """Decisions to carry out before asking again; their requests no longer wait. Empty: all have to wait."""
        if now < self._next_pass_s:
            return []
        changes = self.state.openings, self.state.releases
        if self._seeking and (self.dirty or changes != self._searched_at):
            found = self._find_decode(now)
            if found is not None:
                return [found]
            self._searched_at = changes
        return self._pass(now) if self._may_start() else []

    def _may_start(self) -> bool:
        """Whether a queued request may start that could not in the last pass."""
        released = self._releases != self.state.releases and (self.placement.tight or bool(self.state.cut))
        return self.dirty or released or self._openings != self.state.openings

    def _pass(self, now: float) -> list[Decision]:
        """One pass over the queue."""
        self._openings, self._releases = self.state.openings, self.state.releases
        verdicts: list[Decision] = []
        queue = list(self._queue.values())
        if self._not_before_s:
            queue = [item for item in queue if now >= self._not_before_s.get(item.request_id, now)]
        if queue:
            verdicts += self._decide(queue, now)
        if queue or self._seeking:
            self._next_pass_s = now + self._pause_s(len(queue), bool(verdicts))
        for verdict in verdicts:
            del self._queue[verdict.request_id]
            self._not_before_s.pop(verdict.request_id, None)
        self.dirty = bool(verdicts) and len(queue) > self.placement.scanned
        return verdicts

    def _pause_s(self, looked_at: int, decided: bool) -> float:
        """How long after a pass no other one is started. Requests that come meanwhile are placed together."""
        waiting, workers = len(self._queue) + len(self._seeking), len(self.state.workers)
        crowd_s = min(PAUSE_S * waiting, MOST_PAUSE_S) if waiting > CROWD and not decided else 0.0
        prices = max(min(looked_at + len(self._seeking), self.placement.scanned), LEAST_PRICED) * workers
        return max(crowd_s, PAUSE_PER_PRICE_S * prices) if workers > LARGE else crowd_s

    def _decide(self, queue: list[PlacementInput], now: float) -> list[Place | Refuse]:
        """The policy's decisions; a request goes to no worker that cannot reach its gateway."""
        if not self.state.cut:
            return self.placement.decide(self.fairness.order(queue), self.state, now)
        for gateway in sorted({item.gateway for item in queue}):
            waiting = self.fairness.order([item for item in queue if item.gateway == gateway])
            with self.state.without(self.state.cut.get(gateway, ())):
                verdicts = self.placement.decide(waiting, self.state, now)
            if verdicts:
                return verdicts
        return []

    def _find_decode(self, now: float) -> FoundDecode | DecodeUnreachable | None:
        """The first request that needs a decode worker and for which there is one, or none in reach."""
        if not self.state.cut:
            return self._search(self._seeking, now)
        for gateway in sorted({sought.item.gateway for sought in self._seeking.values()}):
            seeking = {name: sought for name, sought in self._seeking.items() if sought.item.gateway == gateway}
            with self.state.without(self.state.cut.get(gateway, ())):
                found = self._search(seeking, now)
            if found is not None:
                return found
        return None

    def _search(self, seeking: dict[str, _Sought], now: float) -> FoundDecode | DecodeUnreachable | None:
        if not seeking:
            return None
        table = self.state.table
        decoders = table.is_decode | table.mixed
        capacity_tokens = int(np.max(table.pages_available * table.page_size, where=decoders, initial=0))
        decode_pool = bool(table.is_decode.any())
        for request_id, sought in seeking.items():
            item = sought.item
            source = self.state.workers.get(item.prefill_worker)
            if sought.home is None and source is not None and self.state.reaches_no_decode(source):
                del self._seeking[request_id]
                return DecodeUnreachable(request_id)
            if item.num_tokens > capacity_tokens:
                continue  # no worker has so many pages
            if (
                sought.home is None
                and decode_pool
                and reachable(table.is_decode, item.prefill_worker, self.state).any()
            ):
                worker = self.placement.find_decode(item, self.state, sought.avoid, now)
            else:
                home = sought.home or item.prefill_worker
                worker = find_capacity(item.num_tokens, item.total_tokens, self.state, home, sought.avoid)
            if worker is not None:
                del self._seeking[request_id]
                return FoundDecode(request_id, worker)
        return None
