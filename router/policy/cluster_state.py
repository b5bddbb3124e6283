"""The router's view of its workers: their last report, plus what was sent and received since.

The ledger counts at dispatch, not at the next report, so that a burst is not sent to one worker because its last
report was empty; a report names what it already includes, so that nothing is counted twice. Between reports the
view is extrapolated: predicted work passes with time. Decode steps lengthen the sequences.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from baton.protocol.session_messages import PagesChanged
from baton.protocol.worker import RoleName, WorkerInfo, WorkerLoad
from baton.router.policy.latency_model import DEFAULT_COSTS, LatencyModel, StepCosts
from baton.router.policy.prefix_index import Match, PrefixIndex
from baton.router.policy.worker_table import WorkerTable
from baton.router.policy.worker_view import PromptWork, RunningSequence, WorkerView

__all__ = ["ClusterState", "PromptWork", "RunningSequence", "WorkerView"]


@dataclass(eq=False)
class ClusterState:
    """Every live worker, by name, and which prefix pages each has. What concerns an unknown worker is ignored."""

    prior: StepCosts = DEFAULT_COSTS
    workers: dict[str, WorkerView] = field(default_factory=dict)
    cordoned: set[str] = field(default_factory=set)  # workers that get no new work, also those that are away
    prefix_index: PrefixIndex = field(default_factory=PrefixIndex)
    table: WorkerTable = field(default_factory=WorkerTable)
    unreachable: dict[str, set[str]] = field(default_factory=dict)  # worker → those it cannot exchange pages with now
    cut: dict[str, set[str]] = field(default_factory=dict)  # gateway → workers that cannot send tokens to it now
    openings: int = 0  # how often a worker began to take prompts, or a role or a link changed
    role_changes: int = 0  # how often a worker joined or left, or a role or a link changed
    releases: int = 0  # how often a worker got pages, or a place in its batch, back
    _cached: dict[int, tuple[Match, int, np.ndarray]] = field(default_factory=dict)  # id of a chain → tokens by row
    _pools: dict[tuple[RoleName, ...], list[WorkerView]] = field(default_factory=dict)  # what `pool` found
    _capacities: dict[tuple[RoleName, ...], int | None] = field(default_factory=dict)

    def register(self, info: WorkerInfo, now: float) -> None:
        """A worker registers (again): an older incarnation no longer counts."""
        self.remove(info.name)
        self.prefix_index.add(info.name)
        load = WorkerLoad(info.name, info.role, info.role_epoch, 0, info.num_pages, info.num_pages, 0)
        row = self.table.add(info, self.prefix_index.bit(info.name) or 0)
        view = WorkerView(info, load, now, self.table, row, LatencyModel(self.prior))
        self.workers[info.name] = view
        view.report(load, now)
        self._serve(info.name)

    def report(self, load: WorkerLoad, now: float) -> None:
        view = self.workers.get(load.worker)
        if view is not None:
            moved, took_prompts, pages = load.role is not view.role, view.takes_prompts, view.pages_available
            view.report(load, now)
            self.openings += (view.takes_prompts and not took_prompts) or view.pages_available > 0 >= pages
            self.releases += view.pages_available > pages
            if moved:
                self._update_roles(view.name)

    def on_pages(self, worker: str, change: PagesChanged) -> bool:
        """A worker's prefix pages changed; False if a message was lost and a snapshot is needed."""
        true = self.prefix_index.on_change(worker, change)
        view = self.workers.get(worker)
        if view is not None:
            self.table.set_bit(view.row, self.prefix_index.bit(worker) or 0)
        return true

    def remove(self, worker: str) -> WorkerView | None:
        view = self.workers.pop(worker, None)
        if view is not None:
            self.prefix_index.remove(worker)
            self.table.remove(view.row)
            self._update_roles()
        return view

    def pool(self, *roles: RoleName) -> list[WorkerView]:
        """Workers that serve in any of these roles, ordered by name."""
        found = self._pools.get(roles)
        if found is None:
            views = (view for view in self.workers.values() if view.serving and view.role in roles)
            found = self._pools[roles] = sorted(views, key=lambda view: view.name)
        return found

    def capacity_tokens(self, *roles: RoleName) -> int | None:
        """The most tokens that a worker serving in any of these roles can hold; None without one."""
        if roles not in self._capacities:
            self._capacities[roles] = max([view.info.capacity_tokens for view in self.pool(*roles)], default=None)
        return self._capacities[roles]

    def reaches_no_decode(self, view: WorkerView) -> bool:
        """Whether a prefill worker can reach no decode worker."""
        unreachable, decode = self.unreachable.get(view.name, set()), (RoleName.DECODE, RoleName.MIXED)
        unsure = bool(unreachable) and view.role is RoleName.PREFILL
        return unsure and all(one.name in unreachable for one in self.pool(*decode))

    def set_reachable(self, one: str, other: str, reachable: bool) -> None:
        """Whether two workers can exchange pages now; workers that have left count too."""
        for name, peer in ((one, other), (other, one)):
            peers = self.unreachable.setdefault(name, set())
            (peers.discard if reachable else peers.add)(peer)
            if not peers:
                del self.unreachable[name]
        self._update_roles(one, other)

    def cut_off(self, worker: str, gateway: str) -> bool:
        """Whether the worker cannot send tokens to the gateway now."""
        return worker in self.cut.get(gateway, ())

    @contextmanager
    def without(self, workers: Collection[str]) -> Iterator[None]:
        """The cluster as if these workers served no new work."""
        hidden = [view for name in sorted(workers) if (view := self.workers.get(name)) is not None and view.serving]
        openings, names = self.openings, [view.name for view in hidden]
        for view in hidden:
            view.serving = False
        self._update_roles(*names)
        try:
            yield
        finally:
            for view in hidden:
                view.serving = True
            self._update_roles(*names)
            self.openings = openings

    def cordon(self, worker: str) -> None:
        """Stop new work on the worker."""
        self.cordoned.add(worker)
        self._serve(worker)

    def uncordon(self, worker: str) -> None:
        self.cordoned.discard(worker)
        self._serve(worker)

    def _serve(self, worker: str) -> None:
        view = self.workers.get(worker)
        if view is not None:
            view.serving = worker not in self.cordoned
            self._update_roles(worker)

    def change_role(self, worker: str, role: RoleName, role_epoch: int) -> None:
        """The worker has changed its role."""
        view = self.workers.get(worker)
        if view is not None:
            view.load = replace(view.load, role=role, role_epoch=role_epoch)
            self._update_roles(worker)

    def _update_roles(self, *workers: str) -> None:
        """The roles of these workers, and of those that a change may strand."""
        self._pools.clear()
        self._capacities.clear()
        self.openings += 1
        self.role_changes += 1
        for name in {*workers, *self.unreachable} & self.workers.keys():
            view = self.workers[name]
            self.table.set_role(view.row, view.role if view.serving and not self.reaches_no_decode(view) else None)

    def cached_tokens(self, page_keys: tuple[int, ...], num_tokens: int) -> np.ndarray:
        """For every row of the table: leading tokens of a prompt the worker has. The last is always computed."""
        tokens: np.ndarray = self.table.cached_tokens([self.prefix_index.match(page_keys)], num_tokens)[0]
        return tokens

    def cached_by_all(self, chains: Sequence[tuple[int, ...]], num_tokens: Sequence[int]) -> np.ndarray:
        """The same for many prompts, of so many tokens each: [n, rows]. What holds of the latest call is kept."""
        matches, before = self.prefix_index.match_many(chains), self._cached
        wanted = list(zip(map(id, chains), matches, num_tokens, strict=True))
        self._cached = {key: before[key] for key, match, tokens in wanted if _same(before.get(key), match, tokens)}
        missing = [one for one in wanted if one[0] not in self._cached]
        if missing:
            tokens = np.array([[one[2]] for one in missing])
            rows = self.table.cached_tokens([one[1] for one in missing], tokens)
            self._cached |= {one[0]: (*one[1:], row) for one, row in zip(missing, rows, strict=True)}
        cached = np.empty((len(chains), len(self.table.names)), np.int64)
        for index, keys in enumerate(chains):
            cached[index] = self._cached[id(keys)][2]
        return cached

    def most_cached(self, page_keys: tuple[int, ...], num_tokens: int) -> int:
        """The leading tokens of a prompt that at least one worker has."""
        match = self.prefix_index.match(page_keys)
        if not match:
            return 0
        page_size = next(iter(self.workers.values())).info.page_size
        return min(match[-1][0], (num_tokens - 1) // page_size) * page_size

    def cached_on(self, worker: str, page_keys: tuple[int, ...], num_tokens: int) -> int:
        """The same for one worker."""
        view = self.workers.get(worker)
        if view is None:
            return 0
        pages = self.prefix_index.pages_of(worker, self.prefix_index.match(page_keys))
        return min(pages, (num_tokens - 1) // view.info.page_size) * view.info.page_size

    def assign(self, worker: str, request_id: str, num_tokens: int, page_keys: tuple[int, ...], now: float) -> None:
        """A prompt of `num_tokens` was sent to a worker."""
        view = self.workers.get(worker)
        if view is not None:
            cached = self.cached_on(worker, page_keys, num_tokens)
            view.assign(request_id, num_tokens - cached, cached, now)

    def unassign(self, worker: str, request_id: str, now: float) -> None:
        """The prompt is computed, or cancelled."""
        view = self.workers.get(worker)
        if view is not None:
            took_prompts = view.takes_prompts
            view.unassign(request_id, now)
            self.openings += view.takes_prompts and not took_prompts

    def epoch(self, worker: str) -> int:
        """How often the worker has changed its role."""
        view = self.workers.get(worker)
        return view.load.role_epoch if view is not None else 0

    def reserve(self, worker: str, reservation_id: str, num_tokens: int) -> None:
        """Pages were requested on the worker."""
        view = self.workers.get(worker)
        if view is not None:
            view.reserve(reservation_id, num_tokens)

    def grant(self, worker: str, reservation_id: str) -> None:
        """The worker holds the pages."""
        view = self.workers.get(worker)
        if view is not None:
            view.grant(reservation_id)

    def refuse(self, worker: str, reservation_id: str) -> None:
        """The worker cannot reserve so many pages."""
        view = self.workers.get(worker)
        if view is not None:
            view.refuse(reservation_id)

    def unreserve(self, worker: str, reservation_id: str) -> None:
        """The worker no longer holds the pages, or is about to release them."""
        view = self.workers.get(worker)
        if view is not None:
            pages = view.pages_available
            self.releases += view.unreserve(reservation_id)
            self.openings += view.pages_available > 0 >= pages

    def expect(self, worker: str, request_id: str, sequence: RunningSequence) -> None:
        """The sequence will decode there."""
        view = self.workers.get(worker)
        if view is not None:
            view.expect(request_id, sequence)

    def forget(self, worker: str, request_id: str) -> None:
        """The sequence no longer decodes there, or never will."""
        view = self.workers.get(worker)
        if view is not None:
            self.releases += view.forget(request_id)


def _same(known: tuple[Match, int, np.ndarray] | None, match: Match, tokens: int) -> bool:
    return known is not None and known[0] is match and known[1] == tokens
