"""The worker's loop: inbox → plan → execute → outbox. The shell around a session; it decides nothing.

One thread owns the session, the engine and the links, so none of them needs a lock; it lends the transport to another
one for what takes long. While a device computes, it drives the transport and handles no events.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from baton.engine.host_pages import PageCopies
from baton.engine.step import Executor
from baton.kv_transfer.transport import Notice
from baton.logs import log
from baton.protocol.codec import decode_notice
from baton.protocol.errors import InternalError, InvalidRequest
from baton.protocol.session_messages import Goodbye
from baton.protocol.worker import Endpoint
from baton.worker.background_transport import Opened, PageTransport, TransportEvent
from baton.worker.core.page_checksums import Checksum, checksums, wrong_pages
from baton.worker.core.role import SendToGateway, SwapIn, SwapOut, WriteEnded, WritePages
from baton.worker.core.session_commands import (
    Connect,
    ConnectGateway,
    Disconnect,
    DisconnectGateway,
    Exit,
    Log,
    NewTransport,
    SessionCommand,
)
from baton.worker.heartbeat import Heartbeat
from baton.worker.idle_check import IdleCheck
from baton.worker.links import Arrival, WorkerLinks
from baton.worker.session import WorkerSession
from baton.worker.step_wait import await_step

POLL_S = 0.001  # how often to poll for a peer's writes while there is no step


@dataclass(eq=False)
class WorkerLoop:
    """Runs a session until `stop`."""

    session: WorkerSession
    executor: Executor
    links: WorkerLinks
    transport: PageTransport
    heartbeat: Heartbeat
    checksum: Checksum
    host_pages: PageCopies
    _stopping: bool = False
    _idle_check: IdleCheck = field(init=False)

    def __post_init__(self) -> None:
        self._idle_check = IdleCheck(self.session.state.pool)
        self._on_opened(self.transport.endpoint)

    def run(self) -> None:
        """Register, serve, and send a goodbye when stopped."""
        try:
            while not self._stopping:
                self._turn()
        finally:
            self.heartbeat.close()
            self.transport.close()  # before the goodbye, after which the router counts on no write of ours
            goodbye = Goodbye("stopped") if self._stopping else Goodbye("its loop has failed", failed=True)
            self.links.flush_tokens()
            self.links.send([*self.session.outbox, goodbye])
            self.links.close()

    def stop(self) -> None:
        """End `run` after its current turn; may be called from any thread."""
        self._stopping = True
        self.links.wake()

    def _turn(self) -> None:
        session, started = self.session, time.perf_counter()
        copies, plan = session.plan(time.monotonic())
        self._perform(copies)
        arrivals: list[Arrival] = []
        deferred = False  # messages may go out while the next step computes
        if plan is not None:
            launched = self.executor.launch(plan)
            if self.executor.async_execution:
                arrivals += self._while_computing()
                deferred = not session.outbox
            await_step(self.executor, launched, self.transport)
            result = self.executor.collect(launched)
            self._poll_transport()
            self._perform(session.absorb(plan, result, time.monotonic()))
            if not deferred:
                self._flush()
            # Including planning and sending: a token waits for the whole turn.
            session.on_step(plan.sample(time.perf_counter() - started))
        else:
            self._flush()  # before there is time to wait
        wait_s = 0.0 if plan is not None else self._idle_wait_s()
        arrivals += self.links.receive(wait_s)
        self._idle_check.on_turn(worked=plan is not None or bool(arrivals), idle=wait_s > POLL_S)
        for arrival in arrivals:
            self._on_arrival(arrival)
        self._poll_transport()
        self._perform(session.tick(time.monotonic(), idle=plan is None))
        if not deferred:
            self._flush()
        self.heartbeat.turned(session.acknowledged)

    def _while_computing(self) -> list[Arrival]:
        """Use the device's time: send the last step's tokens, and decode received frames.

        The frames are not handled yet, since an order could free pages that the step is writing. Unsent messages stay
        in the outbox: re-registering has to wait for the step, too.
        """
        self._flush_tokens()
        if self.session.outbox and self.links.send(self.session.outbox):
            self.session.outbox = []
        return self.links.receive(0.0)

    def _flush(self) -> None:
        self._flush_tokens()
        outbox = self.session.outbox
        if not outbox or self.links.send(outbox):
            self.session.outbox = []
        else:
            self._perform(self.session.on_link_full(time.monotonic()))

    def _flush_tokens(self) -> None:
        for gateway in self.links.flush_tokens():
            self.session.on_gateway_full(gateway, time.monotonic())

    def _on_arrival(self, arrival: Arrival) -> None:
        session, gateway, now = self.session, arrival.gateway, time.monotonic()
        for up in arrival.changes:
            self._perform(session.on_gateway_link(gateway, up, now) if gateway else session.on_router_link(up, now))
        for message in arrival.messages:
            now = time.monotonic()
            if gateway:
                self._perform(session.on_gateway_message(gateway, message, now))
            else:
                self._perform(session.on_message(message, now))

    def _idle_wait_s(self) -> float:
        if self.session.expects_peers or self.transport.in_flight:
            return POLL_S
        return self.session.wait_s(time.monotonic())

    def _poll_transport(self) -> None:
        for event in self.transport.poll():
            self._perform(self._on_transfer(event))

    def _on_transfer(self, event: TransportEvent) -> list[SessionCommand]:
        now = time.monotonic()
        match event:
            case Opened(endpoint):
                self._on_opened(endpoint)
                return []
            case WriteEnded():
                return self.session.on_write_ended(event, now)
            case Notice(agent, payload):
                return self._on_notice(agent, payload, now)

    def _on_opened(self, endpoint: Endpoint) -> None:
        self.links.renew(self.session.info.incarnation)
        self.session.on_transport(endpoint, time.monotonic())

    def _on_notice(self, agent: str, payload: bytes, now: float) -> list[SessionCommand]:
        try:
            notice = decode_notice(payload)
        except InvalidRequest as error:
            log.warning(f"notice from {agent} ignored: {error.message}")
            return []
        page_ids = self.session.reserved_pages(notice.reservation_id)
        wrong = wrong_pages(notice, page_ids, self.checksum) if page_ids else []
        if wrong:
            log.error(f"{len(wrong)} corrupt pages in {notice.reservation_id}", extra={"request": notice.request_id})
        return self.session.on_notice(notice, len(wrong), now)

    def _perform(self, commands: Sequence[SessionCommand]) -> None:
        for command in commands:
            match command:
                case SendToGateway(gateway, message):
                    self.links.put(gateway, message)
                case WritePages():
                    self._write(command)
                case SwapOut(pages, slots):
                    self.host_pages.copy_out(pages, slots)
                case SwapIn(slots, pages):
                    self.host_pages.copy_in(slots, pages)
                case Connect(endpoint):
                    self.transport.connect(endpoint)
                case Disconnect(agent):
                    self.transport.disconnect(agent)
                case ConnectGateway(joined):
                    self.links.connect(joined)
                case DisconnectGateway(gateway):
                    self.links.disconnect(gateway)
                case NewTransport(agent):
                    self.transport.renew(agent)
                case Exit(reason):
                    raise InternalError(reason)
                case Log(sentence, warning):
                    (log.warning if warning else log.info)(sentence)

    def _write(self, command: WritePages) -> None:
        notice = command.notice
        if notice is not None:
            notice = replace(notice, checksums=checksums(command.checksummed, self.checksum))
        self.transport.write(replace(command, notice=notice, checksummed=()))
