"""The router's view of its workers: their last report, plus what was sent and received since.

The ledger counts at dispatch, not at the next report, so that a burst is not sent to one worker because its last
report was empty; a report names what it already includes, so that nothing is counted twice. Between reports the
view is extrapolated: predicted work passes with time, and every streamed token lengthens its sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from baton.protocol.messages import PagesChanged
from baton.protocol.worker import RoleName, WorkerInfo, WorkerLoad
from baton.router.policy.latency_model import DEFAULT_COSTS, LatencyModel, StepCosts
from baton.router.policy.length_distribution import LengthDistribution
from baton.router.policy.prefix_index import PrefixIndex
from baton.router.policy.worker_table import WorkerTable


@dataclass(slots=True, eq=False)
class PromptWork:
    """A prompt (or the rest of one) that was sent to a worker: tokens to compute and their predicted time."""

    tokens: int
    seconds: float


@dataclass(slots=True, eq=False)
class RunningSequence:
    """A sequence that decodes on a worker, or will: its tokens now and its predicted length."""

    prompt_tokens: int
    output: LengthDistribution
    tpot_s: float | None = None  # its objective
    emitted: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.emitted


@dataclass(slots=True, eq=False)
class WorkerView:
    """One worker."""

    info: WorkerInfo
    load: WorkerLoad
    last_message_s: float
    row: int  # of the table
    latency: LatencyModel
    backlog_ends_s: float = 0.0  # predicted end of its prompt work
    assigned: dict[str, PromptWork] = field(default_factory=dict)  # request id → work, in the order it was sent
    reserved: dict[str, int] = field(default_factory=dict)  # reservation id → pages, until a report includes them
    refused_pages: int | None = None  # the smallest reservation it refused since its report
    granted: set[str] = field(default_factory=set)  # reservations it has confirmed: its next report includes them
    running: dict[str, RunningSequence] = field(default_factory=dict)  # request id → sequence
    serving: bool = True  # False: it gets no new work (drained, or changing its role)

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def role(self) -> RoleName:
        return self.load.role

    @property
    def pending_prefill_tokens(self) -> int:
        """Prompt tokens this worker has yet to compute, including those in flight to it.

        Both the report (plus what was sent since) and the ledger are upper bounds: the report lacks what was finished
        since, the ledger the computed part of a prompt.
        """
        if not self.assigned:
            return 0
        counted = set(self.load.request_ids)
        unseen = sum(work.tokens for request_id, work in self.assigned.items() if request_id not in counted)
        return min(self.load.pending_prefill_tokens + unseen, sum(work.tokens for work in self.assigned.values()))

    @property
    def pages_available(self) -> int:
        """Pages it can still reserve, less what was reserved since its report."""
        counted = set(self.load.reservation_ids)
        unseen = sum(pages for reservation_id, pages in self.reserved.items() if reservation_id not in counted)
        available = self.load.pages_available - unseen
        return available if self.refused_pages is None else min(available, self.refused_pages - 1)

    @property
    def sequences(self) -> int:
        """Sequences that run, wait or are expected here."""
        return len(self.running) + len(self.assigned.keys() - self.running.keys())

    def peak_pages(self, extra: RunningSequence | None = None) -> int:
        """Pages its sequences will hold at the fullest moment, if each ends when expected.

        Sequences sorted by what remains: when the i-th from the top ends, i of them have grown by that much
        (LightLLM's past-future scheduler, Gong et al. 2025).
        """
        sequences = [*self.running.values(), *([extra] if extra else [])]
        expected = sorted(((one.output.remaining(one.emitted), one.tokens) for one in sequences), reverse=True)
        peak = tokens = 0.0
        for count, (remaining, held) in enumerate(expected, 1):
            tokens += held
            peak = max(peak, tokens + count * remaining)
        return int(peak / self.info.page_size) + len(expected)

    def fits_at_peak(self, extra: RunningSequence) -> bool:
        """Whether its sequences and `extra` have enough pages at the fullest moment."""
        sequences = [*self.running.values(), extra]
        # If even their limits fit, their expected ends do not matter.
        most = sum([one.prompt_tokens + max(one.output.limit, one.emitted + 1) for one in sequences])
        pages = most // self.info.page_size + len(sequences)
        return pages <= self.info.num_pages or self.peak_pages(extra) <= self.info.num_pages

    def remaining_work_s(self) -> float:
        """Predicted time for the prompt tokens in the last report, and for those sent since."""
        counted = set(self.load.request_ids)
        known = [work for request_id, work in self.assigned.items() if request_id in counted]
        computed = sum(work.tokens for work in known) - self.load.pending_prefill_tokens
        seconds = sum(work.seconds for request_id, work in self.assigned.items() if request_id not in counted)
        for work in known:
            done = min(max(computed, 0), work.tokens)
            computed -= done
            seconds += work.seconds * (1 - done / max(work.tokens, 1))
        return seconds


@dataclass(eq=False)
class ClusterState:
    """Every live worker, by name, and which prefix pages each has."""

    prior: StepCosts = DEFAULT_COSTS
    workers: dict[str, WorkerView] = field(default_factory=dict)
    cordoned: set[str] = field(default_factory=set)  # workers that get no new work, also those that are away
    prefix_index: PrefixIndex = field(default_factory=PrefixIndex)
    table: WorkerTable = field(default_factory=WorkerTable)
    unreachable: dict[str, set[str]] = field(default_factory=dict)  # worker → those it cannot exchange pages with now
    share_prefixes: bool = False  # between tenants; the workers name their pages by the same rule

    def register(self, info: WorkerInfo, now: float) -> None:
        """A worker registers (again): an older incarnation no longer counts."""
        self.remove(info.name)
        self.prefix_index.add(info.name)
        load = WorkerLoad(info.name, info.role, info.role_epoch, 0, info.num_pages, info.num_pages, 0)
        row = self.table.add(info, self.prefix_index.bit(info.name) or 0)
        self.workers[info.name] = WorkerView(info, load, now, row, LatencyModel(self.prior), now)
        self._serve(info.name)

    def report(self, load: WorkerLoad, now: float) -> None:
        view = self.workers.get(load.worker)
        if view is not None:
            view.load = load
            view.last_message_s = now
            for reservation_id in view.granted:
                view.reserved.pop(reservation_id, None)
            view.granted.clear()
            view.refused_pages = None
            view.backlog_ends_s = now + view.remaining_work_s()
            for sample in load.steps:
                view.latency.observe(sample)
            self.sync(view)

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
            self._sync_roles()
        return view

    def pool(self, *roles: RoleName) -> list[WorkerView]:
        """Workers that serve in any of these roles, ordered by name."""
        views = (view for view in self.workers.values() if view.serving and view.role in roles)
        return sorted(views, key=lambda view: view.name)

    def reaches_no_decode(self, view: WorkerView) -> bool:
        """Whether a prefill worker can reach no decode worker."""
        unreachable, decode = self.unreachable.get(view.name, set()), (RoleName.DECODE, RoleName.MIXED)
        unsure = bool(unreachable) and view.role is RoleName.PREFILL
        return unsure and all(one.name in unreachable for one in self.pool(*decode))

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
            self.sync(view)

    def change_role(self, worker: str, role: RoleName, role_epoch: int) -> None:
        """The worker has changed its role."""
        view = self.workers.get(worker)
        if view is not None:
            view.load = replace(view.load, role=role, role_epoch=role_epoch)
            self.sync(view)

    def cached_tokens(self, page_keys: tuple[int, ...], num_tokens: int) -> np.ndarray:
        """For every row of the table: leading tokens of a prompt the worker has. The last is always computed."""
        return self.table.cached_tokens(self.prefix_index.match(page_keys), num_tokens)

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
        if view is None:
            return
        cached = self.cached_on(worker, page_keys, num_tokens)
        info, costs, new = view.info, view.latency.costs, num_tokens - cached
        seconds = costs.prefill_s(new, cached, info.chunk_tokens)
        if view.load.role is not RoleName.PREFILL and view.running:
            chunk = info.mixed_chunk_tokens or info.chunk_tokens
            beside = costs.seconds(0, 0, len(view.running), self.table.context[view.row])
            seconds = costs.prefill_s(new, cached, chunk) + -(-new // chunk) * (beside - costs.step_s)
        view.assigned[request_id] = PromptWork(new, seconds)
        view.backlog_ends_s = max(view.backlog_ends_s, now) + seconds
        self._sync_prompts(view)

    def unassign(self, worker: str, request_id: str, now: float) -> None:
        """The prompt is computed, or cancelled."""
        view = self.workers.get(worker)
        if view is not None and view.assigned.pop(request_id, None) is not None:
            if not view.assigned:
                view.backlog_ends_s = min(view.backlog_ends_s, now)
            self._sync_prompts(view)

    def epoch(self, worker: str) -> int:
        """How often the worker has changed its role."""
        view = self.workers.get(worker)
        return view.load.role_epoch if view is not None else 0

    def reserve(self, worker: str, reservation_id: str, num_tokens: int) -> None:
        view = self.workers.get(worker)
        if view is not None:
            view.reserved[reservation_id] = -(-num_tokens // view.info.page_size)
            self._sync_pages(view)

    def grant(self, worker: str, reservation_id: str) -> None:
        """The worker holds the pages now; its link is first in, first out, so its next report includes them."""
        view = self.workers.get(worker)
        if view is not None and reservation_id in view.reserved:
            view.granted.add(reservation_id)

    def refuse(self, worker: str, reservation_id: str) -> None:
        """The worker cannot reserve so many pages, whatever its last report said; the next report replaces this."""
        view = self.workers.get(worker)
        if view is not None and reservation_id in view.reserved:
            pages = view.reserved[reservation_id]
            view.refused_pages = pages if view.refused_pages is None else min(pages, view.refused_pages)

    def unreserve(self, worker: str, reservation_id: str) -> None:
        view = self.workers.get(worker)
        if view is not None and view.reserved.pop(reservation_id, None) is not None:
            self._sync_pages(view)

    def expect(self, worker: str, request_id: str, sequence: RunningSequence) -> None:
        """The sequence will decode there."""
        view = self.workers.get(worker)
        if view is not None:
            view.running[request_id] = sequence
            self._sync_sequences(view)

    def forget(self, worker: str, request_id: str) -> None:
        """The sequence no longer decodes there, or never will."""
        view = self.workers.get(worker)
        if view is not None and view.running.pop(request_id, None) is not None:
            self._sync_sequences(view)

    def _sync_roles(self, *workers: str) -> None:
        for name in {*workers, *self.unreachable} & self.workers.keys():  # a change of these may strand others
            view = self.workers[name]
            self.table.set_role(view.row, view.role if view.serving and not self.reaches_no_decode(view) else None)

    def sync(self, view: WorkerView) -> None:
        """Bring the worker's row of the table up to date."""
        self._sync_roles(view.name)
        self.table.set_costs(view.row, view.latency.costs)
        self._sync_prompts(view)
        self._sync_pages(view)
        self._sync_sequences(view)

    def _sync_prompts(self, view: WorkerView) -> None:
        self.table.backlog_ends_s[view.row] = view.backlog_ends_s
        self.table.pending_prefill[view.row] = view.pending_prefill_tokens
        self.table.sequences[view.row] = view.sequences

    def _sync_pages(self, view: WorkerView) -> None:
        self.table.pages_available[view.row] = view.pages_available

    def _sync_sequences(self, view: WorkerView) -> None:
        table, row, running = self.table, view.row, view.running.values()
        table.decodes[row] = len(running)
        table.sequences[row] = view.sequences
        table.context[row] = sum([one.prompt_tokens + one.emitted for one in running])
        objectives = [one.tpot_s for one in running if one.tpot_s is not None]
        table.tpot_s[row] = min(objectives) if objectives else np.inf
        table.all_state_tpot[row] = len(objectives) == len(running)
