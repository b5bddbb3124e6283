"""A worker's load reports, and when to send them. Pure: the live loop and the simulator send the messages."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.protocol.messages import WorkerMessage
from baton.protocol.prefix_hash import page_keys
from baton.protocol.session_messages import LoadReport, PagesChanged
from baton.protocol.worker import StepSample, WorkerLoad
from baton.worker.core.role import Occupancy, Role
from baton.worker.core.state import WorkerState

LOAD_EVERY_S = 0.05  # at most this often a load that matters is reported while steps run
SCARCE = 8  # of so many pages fewer than one is available: then each page may decide where a request goes
MAX_STEP_SAMPLES = 64  # per report


@dataclass(eq=False)
class Reports:
    """A load is reported every `interval_s`, and soon where the router cannot know of it and may decide by it.

    The router counts what it has sent, and what the worker's other messages say. It cannot know how far prompts are
    computed, and so which pages can be matched, by how many pages sequences have grown, nor, where few are left or all
    are free again, how many pages that leaves.

    Prefix pages travel with the load. Their messages are numbered, so that the router notices a lost one and asks for
    a snapshot.
    """

    worker: str
    state: WorkerState
    interval_s: float = 0.5
    _reported_s: float = float("-inf")
    _looked_s: float = float("-inf")
    _reported: tuple[int, int] | None = None  # decode steps, pages; None: a report is due
    _prefilled: bool = False  # since the latest report
    _loads: int = 0
    _page_messages: int = 0
    _samples: list[StepSample] = field(default_factory=list)

    def on_step(self, sample: StepSample) -> None:
        """Keep a measured step for the next report. Steps of one kind after each other are added up."""
        self._prefilled = self._prefilled or sample.prefill_tokens > 0
        if self._samples and _kind(self._samples[-1]) == _kind(sample):
            self._samples[-1] += sample
        else:
            self._samples.append(sample)
            del self._samples[:-MAX_STEP_SAMPLES]

    def on_register_ack(self, report_interval_s: float) -> list[WorkerMessage]:
        """The router has acknowledged the registration; it needs our pages and our load."""
        self.interval_s = report_interval_s
        self._reported = None
        return self.snapshot()

    def on_role_changed(self, state: WorkerState) -> None:
        """Make the next report, with the new role, due at once."""
        self.state = state
        self.be_due()

    def be_due(self) -> None:
        """Make the next report due at once."""
        self._reported, self._looked_s = None, float("-inf")

    def snapshot(self) -> list[WorkerMessage]:
        """Every page that a prefix match can find."""
        self.state.pool.take_changes()
        self._page_messages += 1
        return [PagesChanged(self._page_messages, page_keys(self.state.pool.matchable()), (), snapshot=True)]

    def wait_s(self, now: float) -> float:
        """Time until the next heartbeat is due."""
        return max(0.0, self._reported_s + self.interval_s - now)

    def due(self, role: Role, now: float, idle: bool) -> list[WorkerMessage]:
        """The messages to send now; an `idle` worker does not wait for LOAD_EVERY_S."""
        if now - self._looked_s < LOAD_EVERY_S and not idle:
            return []
        self._looked_s = now
        held, pool = role.occupancy(), self.state.pool
        if now - self._reported_s < self.interval_s and not self._matters(held):
            return []
        self._loads += 1
        load = WorkerLoad(
            worker=self.worker,
            role=role.name,
            role_epoch=self.state.role_epoch,
            sequence_number=self._loads,
            pages_total=pool.num_pages,
            pages_free=pool.num_free,
            pages_cached=pool.num_cached,
            running=held.running,
            waiting=held.waiting,
            pending_prefill_tokens=held.pending_prefill_tokens,
            context_tokens=held.context_tokens,
            request_ids=held.request_ids,
            reservation_ids=held.reservation_ids,
            swapped=held.swapped,
            swap_outs=held.swap_outs,
            recomputes=held.recomputes,
            decode_steps=held.decode_steps,
            steps=tuple(self._samples),
        )
        self._reported, self._prefilled = (held.decode_steps, pool.num_available), False
        self._reported_s = now
        self._samples.clear()
        return [LoadReport(load), *self._pages_changed()]

    def _matters(self, held: Occupancy) -> bool:
        """Whether a decision may depend on what has changed since the latest report."""
        if self._reported is None or self._prefilled:
            return True
        (steps, pages), pool = self._reported, self.state.pool
        empty = not held.request_ids and not held.reservation_ids  # it may have nothing to do until it is sent more
        scarce = empty or SCARCE * min(pages, pool.num_available) < pool.num_pages
        return held.decode_steps >= steps + pool.page_size or (scarce and pages != pool.num_available)

    def _pages_changed(self) -> list[WorkerMessage]:
        stored, evicted = self.state.pool.take_changes()
        if not stored and not evicted:
            return []
        self._page_messages += 1
        return [PagesChanged(self._page_messages, page_keys(stored), page_keys(evicted))]


def _kind(sample: StepSample) -> tuple[bool, bool]:
    """Whether it prefills, and whether it decodes."""
    return sample.prefill_tokens > 0, sample.decodes > 0
