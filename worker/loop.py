"""The worker's loop: inbox → plan → execute → outbox. The shell around a role; it decides nothing.

One thread owns the role, the engine, the link and the transport, so none of them needs a lock. While the engine
computes, the transport's own thread moves pages.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from baton.wire import decode_notice, encode_notice
from cluster.errors import BatonError, InvalidRequest
from cluster.messages import (
    Goodbye,
    LoadReport,
    PagesChanged,
    PeerJoined,
    PeerLeft,
    Register,
    RouterMessage,
    Welcome,
    WorkerMessage,
)
from cluster.worker import StepSample, WorkerInfo, WorkerLoad
from engine.kv_pages import PageEvicted, PageStored
from engine.step import Executor
from kv_transfer.transport import Notice, TransferEvent, Transport, WriteDone, WriteFailed
from worker.role import Command, Role, Send, WriteEnded, WritePages
from worker.router_link import RouterLink
from worker.state import WorkerState

POLL_S = 0.001  # how often to look for a peer's writes while nothing is to compute
LOAD_EVERY_S = 0.05  # at most this often a changed load is reported
MAX_STEP_SAMPLES = 64  # per report


@dataclass(eq=False)
class WorkerLoop:
    """Runs a role until `stop`."""

    info: WorkerInfo
    state: WorkerState
    role: Role
    executor: Executor
    link: RouterLink
    transport: Transport
    _outbox: list[WorkerMessage] = field(default_factory=list)
    _write_of_transfer: dict[int, int] = field(default_factory=dict)
    _failed_writes: list[WriteEnded] = field(default_factory=list)
    _samples: list[StepSample] = field(default_factory=list)
    _report_interval_s: float = 0.5
    _reported_s: float = 0.0
    _reported: tuple[object, ...] = ()
    _sequence_number: int = 0
    _stopping: bool = False

    def run(self) -> None:
        """Register, serve, and say goodbye when told to stop."""
        self._outbox.append(Register(self.info))
        self._flush()
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._outbox.append(Goodbye("stopped"))
            self._flush()
            self.link.close()
            self.transport.close()

    def stop(self) -> None:
        """End `run` after its current turn; may be called from any thread."""
        self._stopping = True
        self.link.wake()

    def _turn(self) -> None:
        plan = self.role.plan(time.monotonic())
        if plan is not None:
            started = time.perf_counter()
            result = self.executor.execute(plan)
            seconds = time.perf_counter() - started
            prefill_tokens = plan.num_tokens - plan.num_decodes
            self._samples.append(StepSample(prefill_tokens, plan.num_decodes, plan.context_tokens, seconds))
            del self._samples[:-MAX_STEP_SAMPLES]
            self._poll_transport()
            self._perform(self.role.absorb(plan, result, time.monotonic()))
            self._flush()
        for message in self.link.receive(0.0 if plan is not None else self._idle_wait_s()):
            self._on_message(message)
        self._poll_transport()
        self._report_load(idle=plan is None)
        self._flush()

    def _idle_wait_s(self) -> float:
        if self.role.expects_peers or self.transport.in_flight or self._failed_writes:
            return POLL_S
        return max(0.0, self._reported_s + self._report_interval_s - time.monotonic())

    def _on_message(self, message: RouterMessage) -> None:
        match message:
            case Welcome(_, report_interval_s):
                self._report_interval_s = report_interval_s
                self._reported = ()
            case PeerJoined(endpoint):
                self._connect(endpoint)
            case PeerLeft(agent):
                self.transport.disconnect(agent)
            case _:
                self._perform(self.role.on_message(message, time.monotonic()))

    def _connect(self, endpoint: object) -> None:
        try:
            self.transport.connect(endpoint)  # type: ignore[arg-type]
        except BatonError as error:
            # A peer that cannot be reached fails the handoffs that need it, each with this reason.
            print(f"{self.info.name}: {error.message}", flush=True)

    def _poll_transport(self) -> None:
        failed, self._failed_writes = self._failed_writes, []
        for outcome in failed:
            self._perform(self.role.on_write_ended(outcome, time.monotonic()))
        for event in self.transport.poll():
            self._on_transfer(event)

    def _on_transfer(self, event: TransferEvent) -> None:
        now = time.monotonic()
        match event:
            case WriteDone(transfer_id, num_bytes, seconds):
                outcome = WriteEnded(self._write_of_transfer.pop(transfer_id), num_bytes, seconds)
                self._perform(self.role.on_write_ended(outcome, now))
            case WriteFailed(transfer_id, reason):
                outcome = WriteEnded(self._write_of_transfer.pop(transfer_id), 0, 0.0, reason)
                self._perform(self.role.on_write_ended(outcome, now))
            case Notice(agent, payload):
                try:
                    notice = decode_notice(payload)
                except InvalidRequest as error:
                    print(f"{self.info.name}: notice from {agent} ignored: {error.message}", flush=True)
                    return
                self._perform(self.role.on_notice(notice, now))

    def _perform(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Send(message):
                    self._outbox.append(message)
                case WritePages():
                    self._write(command)

    def _write(self, command: WritePages) -> None:
        notice = encode_notice(command.notice) if command.notice is not None else None
        try:
            transfer = self.transport.write(command.agent, command.source_pages, command.target_pages, notice)
        except BatonError as error:
            self._failed_writes.append(WriteEnded(command.write_id, 0, 0.0, error.message))
            return
        self._write_of_transfer[transfer] = command.write_id

    def _report_load(self, idle: bool) -> None:
        """Send the load when it changed, and as a sign of life otherwise; between steps at most every LOAD_EVERY_S."""
        now = time.monotonic()
        since = now - self._reported_s
        if since < LOAD_EVERY_S and not idle:
            return
        occupancy, pool = self.role.occupancy(), self.state.pool
        snapshot = (occupancy, pool.num_free, pool.num_cached)
        if snapshot == self._reported and since < self._report_interval_s:
            return
        self._sequence_number += 1
        load = WorkerLoad(
            worker=self.info.name,
            role=self.role.name,
            role_epoch=self.state.role_epoch,
            sequence_number=self._sequence_number,
            pages_total=pool.num_pages,
            pages_free=pool.num_free,
            pages_cached=pool.num_cached,
            running=occupancy.running,
            waiting=occupancy.waiting,
            uncomputed_tokens=occupancy.uncomputed_tokens,
            context_tokens=occupancy.context_tokens,
            request_ids=occupancy.request_ids,
            reservation_ids=occupancy.reservation_ids,
            steps=tuple(self._samples),
        )
        self._reported, self._reported_s = snapshot, now
        self._samples.clear()
        self._outbox += [LoadReport(load), *self._pages_changed()]

    def _pages_changed(self) -> list[WorkerMessage]:
        events = self.state.pool.take_events()
        if not events:
            return []
        stored = tuple((event.page_hash, event.parent) for event in events if isinstance(event, PageStored))
        evicted = tuple(event.page_hash for event in events if isinstance(event, PageEvicted))
        return [PagesChanged(self._sequence_number, stored, evicted)]

    def _flush(self) -> None:
        if self._outbox:
            self.link.send(self._outbox)
            self._outbox = []
