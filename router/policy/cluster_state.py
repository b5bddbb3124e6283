"""What the router believes of its workers: their last report, plus what it has sent them since.

The ledger counts at dispatch, not at the next report, so that a burst is not sent to one worker because its last
report was empty; a report names what it already includes, so that nothing is counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.worker import RoleName, WorkerInfo, WorkerLoad


@dataclass(slots=True, eq=False)
class WorkerView:
    """One worker."""

    info: WorkerInfo
    load: WorkerLoad
    heard_s: float
    assigned: dict[str, int] = field(default_factory=dict)  # request id → prompt tokens to compute
    reserved: dict[str, int] = field(default_factory=dict)  # reservation id → pages

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def uncomputed_tokens(self) -> int:
        """Prompt tokens this worker has yet to compute, including those on their way to it.

        Both the report (plus what it cannot know yet) and the ledger are upper bounds: the report misses what was
        finished since, the ledger the part of a prompt that is done.
        """
        counted = set(self.load.request_ids)
        unseen = sum(tokens for request_id, tokens in self.assigned.items() if request_id not in counted)
        return min(self.load.uncomputed_tokens + unseen, sum(self.assigned.values()))

    @property
    def pages_available(self) -> int:
        """Pages it can still promise, less what was promised since its report."""
        counted = set(self.load.reservation_ids)
        unseen = sum(pages for reservation_id, pages in self.reserved.items() if reservation_id not in counted)
        return self.load.pages_available - unseen

    @property
    def sequences(self) -> int:
        """Sequences that run, wait or are expected here."""
        counted = set(self.load.reservation_ids) | set(self.load.request_ids)
        unseen = sum(1 for key in (*self.assigned, *self.reserved) if key not in counted)
        return self.load.running + self.load.waiting + len(self.load.reservation_ids) + unseen


@dataclass(eq=False)
class ClusterState:
    """Every live worker, by name."""

    workers: dict[str, WorkerView] = field(default_factory=dict)

    def register(self, info: WorkerInfo, now: float) -> None:
        """A worker that comes (back): nothing of an older incarnation counts any more."""
        load = WorkerLoad(info.name, info.role, info.role_epoch, 0, info.num_pages, info.num_pages, 0)
        self.workers[info.name] = WorkerView(info, load, now)

    def report(self, load: WorkerLoad, now: float) -> None:
        view = self.workers.get(load.worker)
        if view is not None:
            view.load = load
            view.heard_s = now

    def remove(self, worker: str) -> WorkerView | None:
        return self.workers.pop(worker, None)

    def pool(self, *roles: RoleName) -> list[WorkerView]:
        """Live workers in any of these roles, ordered by name."""
        return sorted((view for view in self.workers.values() if view.load.role in roles), key=lambda view: view.name)

    def assign(self, worker: str, request_id: str, tokens: int) -> None:
        if worker in self.workers:
            self.workers[worker].assigned[request_id] = tokens

    def unassign(self, worker: str, request_id: str) -> None:
        if worker in self.workers:
            self.workers[worker].assigned.pop(request_id, None)

    def reserve(self, worker: str, reservation_id: str, pages: int) -> None:
        if worker in self.workers:
            self.workers[worker].reserved[reservation_id] = pages

    def unreserve(self, worker: str, reservation_id: str) -> None:
        if worker in self.workers:
            self.workers[worker].reserved.pop(reservation_id, None)
