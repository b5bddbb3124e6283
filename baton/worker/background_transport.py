"""A worker's transport without its long calls: what takes milliseconds runs in a thread, so that no step waits for it.

Opening a NIXL agent takes 12 ms of CPU time, connecting the first peer 6 ms, and each further one 0.5 ms. Calls take
effect in the order in which they were requested. While one runs in the thread, the loop makes none, because a transport
is not thread-safe: later writes wait, and nothing is polled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from baton.kv_transfer.transport import Notice, Transport, WriteDone, WriteFailed
from baton.logs import log
from baton.protocol.errors import BatonError
from baton.protocol.worker import Endpoint
from baton.worker.core.role import WriteEnded, WritePages


@dataclass(frozen=True, slots=True)
class Opened:
    """The transport is open under its new name."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class _Write:
    command: WritePages
    notice: bytes | None


@dataclass(frozen=True, slots=True)
class _Notify:
    write_id: int
    agent: str
    notice: bytes


TransportEvent = Opened | WriteEnded | Notice
_Slow = Callable[[], Opened | None]  # A call that runs in the thread


@dataclass(eq=False)
class BackgroundTransport:
    """The transports that `make` opens for one worker, one after the other. The first is opened at once."""

    make: Callable[[str], Transport]  # By the name that peers write to
    agent: str
    current: Transport = field(init=False)
    _waiting: deque[_Slow | _Write | _Notify] = field(default_factory=deque)
    _running: Future[list[Opened]] | None = None
    _write_of_transfer: dict[int, int] = field(default_factory=dict)
    _events: list[TransportEvent] = field(default_factory=list)  # To return from `poll`
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "transport"))

    def __post_init__(self) -> None:
        self.current = self.make(self.agent)

    @property
    def in_flight(self) -> bool:
        """Whether `poll` may return events soon."""
        if self._running is not None or self._waiting or self._events:
            return True
        return self.current.in_flight > 0

    def renew(self, agent: str) -> None:
        """Close the transport and open one under another name; `poll` returns `Opened`. No write may be in flight."""
        self._request(lambda: self._reopen(agent))

    def connect(self, peer: Endpoint) -> None:
        """Connect a peer. If it cannot be reached, the writes to it fail."""
        self._request(lambda: self._connect(peer))

    def disconnect(self, agent: str) -> None:
        """Drop a peer; unfinished writes to it fail."""
        self._request(lambda: self.current.disconnect(agent))

    def write(self, command: WritePages, notice: bytes | None) -> None:
        """Write pages, then the notice; `poll` returns exactly one `WriteEnded`."""
        self._waiting.append(_Write(command, notice))
        self._advance()

    def notify(self, write_id: int, agent: str, notice: bytes) -> None:
        """Send the notice of a write that several ranks have made; `poll` returns exactly one `WriteEnded`."""
        self._waiting.append(_Notify(write_id, agent, notice))
        self._advance()

    def progress(self) -> None:
        """Advance writes, and keep events for `poll`."""
        if self._running is None:
            self.current.progress()

    def poll(self) -> list[TransportEvent]:
        """Advance writes and waiting calls; returns the events since the last call. Raises what `make` has raised."""
        self._advance()
        events, self._events = self._events, []
        if self._running is not None:
            return events
        for event in self.current.poll():
            match event:
                case WriteDone(transfer_id, num_bytes, seconds):
                    events.append(WriteEnded(self._write_of_transfer.pop(transfer_id), num_bytes, seconds))
                case WriteFailed(transfer_id, reason):
                    events.append(WriteEnded(self._write_of_transfer.pop(transfer_id), 0, 0.0, reason))
                case Notice():
                    events.append(event)
        return events

    def close(self) -> None:
        """Wait for the call that runs in the thread, and close the transport."""
        self._thread.shutdown()
        self.current.close()

    def _request(self, call: _Slow) -> None:
        self._waiting.append(call)
        self._advance()

    def _advance(self) -> None:
        """Begin waiting calls, until one runs in the thread."""
        if self._running is not None and self._running.done():
            running, self._running = self._running, None
            self._events += running.result()
        while self._waiting and self._running is None:
            match self._waiting[0]:
                case _Write() as write:
                    self._waiting.popleft()
                    self._write(write)
                case _Notify() as notice:
                    self._waiting.popleft()
                    self._notify(notice)
                case _:
                    self._running = self._thread.submit(self._run_slow)

    def _run_slow(self) -> list[Opened]:
        """In the thread: the calls that come before the next write or notice."""
        opened: list[Opened] = []
        while self._waiting and not isinstance(call := self._waiting[0], _Write | _Notify):
            self._waiting.popleft()
            event = call()
            opened += [] if event is None else [event]
        return opened

    def _write(self, write: _Write) -> None:
        command = write.command
        try:
            transfer = self.current.write(command.agent, command.source_pages, command.target_pages, write.notice)
        except BatonError as error:
            self._events.append(WriteEnded(command.write_id, 0, 0.0, error.message))
        else:
            self._write_of_transfer[transfer] = command.write_id

    def _notify(self, notify: _Notify) -> None:
        try:
            self.current.notify(notify.agent, notify.notice)
        except BatonError as error:
            self._events.append(WriteEnded(notify.write_id, 0, 0.0, error.message))
        else:
            self._events.append(WriteEnded(notify.write_id, 0, 0.0))

    def _reopen(self, agent: str) -> Opened:
        self.current.close()
        self.current = self.make(agent)
        return Opened(self.current.endpoint)

    def _connect(self, peer: Endpoint) -> None:
        try:
            self.current.connect(peer)
        except BatonError as error:
            log.warning(error.message)  # Each handoff that needs this peer fails with its reason
