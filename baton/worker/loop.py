"""The worker's loop: inbox → plan → execute → outbox. The shell around a role; it decides nothing.

One thread owns the role, the engine, the link and the transport, so none of them needs a lock. While a device computes,
it drives the transport and handles no events.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from baton.engine.host_pages import HostPages
from baton.engine.step import Executor
from baton.kv_transfer.transport import Notice, TransferEvent, Transport, WriteDone, WriteFailed
from baton.logs import log
from baton.protocol.codec import decode_notice, encode_notice
from baton.protocol.errors import BatonError, InternalError, InvalidRequest
from baton.protocol.handoff import HandoffNotice
from baton.protocol.messages import (
    Goodbye,
    LinkMeasured,
    PeerJoined,
    PeerLeft,
    Register,
    RegisterAck,
    Reregister,
    ResyncPages,
    RouterMessage,
    SwitchRole,
    WorkerMessage,
)
from baton.protocol.worker import WorkerInfo
from baton.worker.core.link_rates import LinkRates
from baton.worker.core.page_checksums import Checksum, checksums, wrong_pages
from baton.worker.core.reports import Reports
from baton.worker.core.role import Command, Role, Send, SwapIn, SwapOut, WriteEnded, WritePages
from baton.worker.core.state import WorkerState
from baton.worker.core.write_watch import WriteWatch
from baton.worker.heartbeat import Heartbeat
from baton.worker.idle_check import IdleCheck
from baton.worker.role_switch import make_role, switch_role
from baton.worker.router_link import RouterLink
from baton.worker.step_wait import await_step

FINISH_WRITES_S = 5.0
POLL_S = 0.001  # how often to poll for a peer's writes while there is no step


@dataclass(eq=False)
class WorkerLoop:
    """Runs a role until `stop`."""

    info: WorkerInfo
    state: WorkerState
    executor: Executor
    link: RouterLink
    make_transport: Callable[[str], Transport]  # from the name that peers know us by
    heartbeat: Heartbeat
    checksum: Checksum
    host_pages: HostPages
    role: Role = field(init=False)
    transport: Transport = field(init=False)
    _outbox: list[WorkerMessage] = field(default_factory=list)
    _write_of_transfer: dict[int, int] = field(default_factory=dict)
    _failed_writes: list[WriteEnded] = field(default_factory=list)
    _reports: Reports = field(init=False)
    _watch: WriteWatch = field(init=False)
    _links: LinkRates = field(init=False)
    _registered: bool = False  # the router has admitted this incarnation: its earlier messages were for the last one
    _router_id: str = ""  # of the router that admitted us last
    _stopping: bool = False
    _idle_check: IdleCheck = field(init=False)

    def __post_init__(self) -> None:
        self._idle_check = IdleCheck(self.state.pool)
        self.role = make_role(self.info.role, self.state)
        self._begin(self.info.incarnation)

    def run(self) -> None:
        """Register, serve, and send a goodbye when stopped."""
        self._flush()
        try:
            while not self._stopping:
                self._turn()
        finally:
            self.heartbeat.close()
            self.transport.close()  # before the goodbye, which says that we write no more
            goodbye = Goodbye("stopped") if self._stopping else Goodbye("its loop has failed", failed=True)
            self.link.send([*self._outbox, goodbye])
            self.link.close()

    def _begin(self, incarnation: str, keep: bool = False) -> None:
        """Start a new incarnation, without sequences or (`keep`) with those that need no peer; weights, cache stay."""
        agent = f"{self.info.name}:{incarnation}"
        self.transport = self.make_transport(agent)
        self.state = replace(self.state, agent=agent)
        held = self.role.on_new_router(self.state) if keep else ()
        if not keep:
            self.state.pool.release_all()
            self.role = make_role(self.role.name, self.state)
        self.info = replace(self.info, incarnation=incarnation, endpoint=self.transport.endpoint)
        self._reports = Reports(self.info.name, self.state)
        self._watch = WriteWatch(self.state.engine.write_stall_s)
        self._links = LinkRates()
        self.link.incarnation = incarnation
        self._registered = False
        self._outbox = [Register(self.info, held)]

    def _reregister(self, keep: bool) -> None:
        """Re-register, once no write of ours is in flight.

        `keep`: the router is another one, or only the connection broke; else our requests were re-assigned.
        """
        what = "keeping its sequences" if keep else "discarding all sequences"
        log.warning(f"incarnation {self.info.incarnation} is not known to the router; re-registering, {what}")
        self.heartbeat.speak_for("")
        self.role.call_off_handoffs()
        deadline_s = time.monotonic() + FINISH_WRITES_S
        self._poll_transport()  # a sequence that has arrived here is ours
        while self._write_of_transfer:
            self._poll_transport()
            if time.monotonic() > deadline_s:
                raise InternalError(f"{self.info.name} cannot re-register: writes to peers do not end.")
        self.transport.close()
        self._failed_writes.clear()
        self._begin(uuid.uuid4().hex[:8], keep)

    def stop(self) -> None:
        """End `run` after its current turn; may be called from any thread."""
        self._stopping = True
        self.link.wake()

    def _turn(self) -> None:
        self.heartbeat.turned()
        started = time.perf_counter()
        copies, plan = self.role.plan(time.monotonic())
        self._perform(copies)
        messages: list[RouterMessage] = []
        deferred = False  # messages may go out while the next step computes
        if plan is not None:
            launched = self.executor.launch(plan)
            if self.executor.async_execution:
                messages += self._while_computing()
                deferred = not self._outbox
            await_step(self.executor, launched, self.transport)
            result = self.executor.collect(launched)
            self._poll_transport()
            self._perform(self.role.absorb(plan, result, time.monotonic()))
            if not deferred:
                self._flush()
            # Including planning and sending: a token waits for the whole turn.
            self._reports.on_step(plan.sample(time.perf_counter() - started))
        else:
            self._flush()  # before there is time to wait
        wait_s = 0.0 if plan is not None else self._idle_wait_s()
        messages += self.link.receive(wait_s)
        self._idle_check.on_turn(worked=plan is not None or bool(messages), idle=wait_s > POLL_S)
        for message in messages:
            self._on_message(message)
        self._poll_transport()
        self._outbox += self._reports.due(self.role, time.monotonic(), idle=plan is None)
        if not deferred:
            self._flush()

    def _while_computing(self) -> list[RouterMessage]:
        """Use the device's time: send the last step's tokens, and decode received frames.

        The frames are not handled yet, since an order could free pages that the step is writing. Unsent messages stay
        in the outbox: re-registering has to wait for the step, too.
        """
        if self._outbox and self.link.send(self._outbox):
            self._outbox = []
        return self.link.receive(0.0)

    def _idle_wait_s(self) -> float:
        if self.role.expects_peers or self.transport.in_flight or self._failed_writes:
            return POLL_S
        return self._reports.wait_s(time.monotonic())

    def _on_message(self, message: RouterMessage) -> None:
        if not self._registered and not isinstance(message, RegisterAck | Reregister):
            return
        match message:
            case Reregister(incarnation, router_id):
                if incarnation == self.info.incarnation:
                    self._reregister(keep=router_id != self._router_id)
            case RegisterAck(router_id, report_interval_s, incarnation):
                if incarnation != self.info.incarnation:
                    return  # later messages are for the old incarnation
                self._registered, self._router_id = True, router_id
                self.heartbeat.speak_for(self.info.incarnation)
                self._outbox += self._reports.on_register_ack(report_interval_s)
            case ResyncPages():
                self._outbox += self._reports.snapshot()
            case SwitchRole():
                self._switch(message)
            case PeerJoined(endpoint, host):
                self._links.joined(endpoint.agent, host)
                self._connect(endpoint)
            case PeerLeft(agent):
                self._links.left(agent)
                self.transport.disconnect(agent)
            case _:
                self._perform(self.role.on_message(message, time.monotonic()))

    def _switch(self, order: SwitchRole) -> None:
        self.role, self.state, answer = switch_role(self.role, self.state, order)
        self.info = replace(self.info, role=self.role.name, role_epoch=self.state.role_epoch)
        self._reports.on_role_changed(self.state)
        self._outbox.append(answer)

    def _connect(self, endpoint: object) -> None:
        try:
            self.transport.connect(endpoint)  # type: ignore[arg-type]
        except BatonError as error:
            # A peer that cannot be reached fails the handoffs that need it, each with this reason.
            log.warning(error.message)

    def _poll_transport(self) -> None:
        failed, self._failed_writes = self._failed_writes, []
        for outcome in failed:
            self._perform(self.role.on_write_ended(outcome, time.monotonic()))
        for event in self.transport.poll():
            self._on_transfer(event)
        for agent in self._watch.look(time.monotonic()):
            given_up = self.role.on_stalled(agent, time.monotonic())
            if given_up:
                log.warning(f"writes to {agent} make no progress; going on without them")
            self._perform(given_up)

    def _on_transfer(self, event: TransferEvent) -> None:
        now = time.monotonic()
        match event:
            case WriteDone(transfer_id, num_bytes, seconds):
                self._on_rate(self._links.ended(self._watch.ended(transfer_id), num_bytes, seconds))
                outcome = WriteEnded(self._write_of_transfer.pop(transfer_id), num_bytes, seconds)
                self._perform(self.role.on_write_ended(outcome, now))
            case WriteFailed(transfer_id, reason):
                self._watch.ended(transfer_id)
                outcome = WriteEnded(self._write_of_transfer.pop(transfer_id), 0, 0.0, reason)
                self._perform(self.role.on_write_ended(outcome, now))
            case Notice(agent, payload):
                try:
                    notice = decode_notice(payload)
                except InvalidRequest as error:
                    log.warning(f"notice from {agent} ignored: {error.message}")
                    return
                self._on_notice(notice, now)

    def _on_rate(self, measured: LinkMeasured | None) -> None:
        if measured is not None:
            sentence, slow = self._links.sentence(self.info, measured)
            (log.warning if slow else log.info)(sentence)
            self._outbox.append(measured)

    def _on_notice(self, notice: HandoffNotice, now: float) -> None:
        page_ids = self.role.reserved_pages(notice.reservation_id)
        wrong = wrong_pages(notice, page_ids, self.checksum) if page_ids else []
        if wrong:
            log.error(f"{len(wrong)} corrupt pages in {notice.reservation_id}", extra={"request": notice.request_id})
            self._perform(self.role.on_corrupt(notice, len(wrong)))
        else:
            self._perform(self.role.on_notice(notice, now))

    def _perform(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Send(message):
                    self._outbox.append(message)
                case WritePages():
                    self._write(command)
                case SwapOut(pages, slots):
                    self.host_pages.copy_out(pages, slots)
                case SwapIn(slots, pages):
                    self.host_pages.copy_in(slots, pages)

    def _write(self, command: WritePages) -> None:
        notice = None
        if command.notice is not None:
            notice = encode_notice(replace(command.notice, checksums=checksums(command.checksummed, self.checksum)))
        try:
            transfer = self.transport.write(command.agent, command.source_pages, command.target_pages, notice)
        except BatonError as error:
            self._failed_writes.append(WriteEnded(command.write_id, 0, 0.0, error.message))
            return
        self._write_of_transfer[transfer] = command.write_id
        num_bytes = len(command.source_pages) * self.info.page_bytes
        self._watch.began(transfer, command.agent, num_bytes)

    def _flush(self) -> None:
        if not self._outbox or self.link.send(self._outbox):
            self._outbox = []
        elif isinstance(self._outbox[0], Register):
            del self._outbox[1:]  # re-sent after admission
        else:
            self._reregister(keep=True)  # the unsent messages are lost: register with the current state
