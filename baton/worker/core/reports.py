"""A worker's load reports, and when to send them. Pure: the live loop and the simulator send the messages."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.protocol.messages import WorkerMessage
from baton.protocol.session_messages import LoadReport, PagesChanged
from baton.protocol.worker import StepSample, WorkerLoad
from baton.worker.core.role import Role
from baton.worker.core.state import WorkerState

LOAD_EVERY_S = 0.05  # at most this often a changed load is reported while steps run
MAX_STEP_SAMPLES = 64  # per report


@dataclass(eq=False)
class Reports:
    """A changed load is reported soon, an unchanged one every `interval_s` as a heartbeat.

    Prefix pages travel with the load. Their messages are numbered, so that the router notices a lost one and asks for
    a snapshot.
    """

    worker: str
    state: WorkerState
    interval_s: float = 0.5
    _reported_s: float = float("-inf")
    _reported: tuple[object, ...] = ()
    _loads: int = 0
    _page_messages: int = 0
    _samples: list[StepSample] = field(default_factory=list)

    def on_step(self, sample: StepSample) -> None:
        """Keep a measured step for the next report."""
        self._samples.append(sample)
        del self._samples[:-MAX_STEP_SAMPLES]

    def on_register_ack(self, report_interval_s: float) -> list[WorkerMessage]:
        """The router has acknowledged the registration; it needs our pages and our load."""
        self.interval_s = report_interval_s
        self._reported = ()
        return self.snapshot()

    def on_role_changed(self, state: WorkerState) -> None:
        """Make the next report, with the new role, due at once."""
        self.state = state
        self._reported, self._reported_s = (), float("-inf")

    def snapshot(self) -> list[WorkerMessage]:
        """Every page that a prefix match can find."""
        self.state.pool.take_changes()
        self._page_messages += 1
        return [PagesChanged(self._page_messages, tuple(self.state.pool.matchable()), (), snapshot=True)]

    def wait_s(self, now: float) -> float:
        """Time until the next heartbeat is due."""
        return max(0.0, self._reported_s + self.interval_s - now)

    def due(self, role: Role, now: float, idle: bool) -> list[WorkerMessage]:
        """The messages to send now; an `idle` worker does not wait for LOAD_EVERY_S."""
        since = now - self._reported_s
        if since < LOAD_EVERY_S and not idle:
            return []
        held, pool = role.occupancy(), self.state.pool
        snapshot = (held, pool.num_free, pool.num_cached)
        if snapshot == self._reported and since < self.interval_s:
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
        self._reported, self._reported_s = snapshot, now
        self._samples.clear()
        return [LoadReport(load), *self._pages_changed()]

    def _pages_changed(self) -> list[WorkerMessage]:
        stored, evicted = self.state.pool.take_changes()
        if not stored and not evicted:
            return []
        self._page_messages += 1
        return [PagesChanged(self._page_messages, tuple(stored), tuple(evicted))]
