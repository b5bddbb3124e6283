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
from typing import Protocol

from baton.kv_transfer.transport import Notice, Transport, WriteDone, WriteFailed
from baton.logs import log
from baton.protocol.codec import encode_notice
from baton.protocol.errors import BatonError
from baton.protocol.worker import Endpoint
from baton.worker.core.role import WriteEnded, WritePages


@dataclass(frozen=True, slots=True)
class Opened:
    """The transport is open under its new name."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class _Write:
    write_id: int
    agent: str
    notice: bytes | None  # To send when the pages have arrived; None: it travels with them


TransportEvent = Opened | WriteEnded | Notice
_Slow = Callable[[], Opened | None]  # A call that runs in the thread


class PageTransport(Protocol):
    """A worker's end of the page network, as its loop drives it. No call waits for a peer."""

    @property
    def endpoint(self) -> Endpoint:
        """The address of the worker's pages, under the present name."""
        ...

    @property
    def in_flight(self) -> bool:
        """Whether `poll` may return events soon."""
        ...

    def renew(self, agent: str) -> None:
        """Close the transport and open one under another name; `poll` returns `Opened`. No write may be in flight."""
        ...

    def connect(self, peer: Endpoint) -> None:
        """Connect a peer. If it cannot be reached, the writes to it fail."""
        ...

    def disconnect(self, agent: str) -> None:
        """Drop a peer; unfinished writes to it fail."""
        ...

    def write(self, command: WritePages) -> None:
        """Write pages, then the notice; `poll` returns exactly one `WriteEnded`."""
        ...

    def progress(self) -> None:
        """Advance writes, and keep events for `poll`."""
        ...

    def poll(self) -> list[TransportEvent]:
        """Advance writes and waiting calls; returns the events since the last call."""
        ...

    def close(self) -> None:
        """Wait for the call that runs in the background, and close the transport."""
        ...


@dataclass(eq=False)
class BackgroundTransport:
    """`PageTransport` of one rank: the transports that `make` opens, one after the other; the first at once."""

    make: Callable[[str], Transport]  # By the name that peers write to
    agent: str
    current: Transport = field(init=False)
    _waiting: deque[_Slow | WritePages] = field(default_factory=deque)
    _running: Future[list[Opened]] | None = None
    _writes: dict[int, _Write] = field(default_factory=dict)  # By transfer id
    _ranks_of: dict[str, int] = field(default_factory=dict)  # By the agents of peers
    _events: list[TransportEvent] = field(default_factory=list)  # To return from `poll`
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "transport"))

    def __post_init__(self) -> None:
        self.current = self.make(self.agent)

    @property
    def endpoint(self) -> Endpoint:
        return self.current.endpoint

    @property
    def in_flight(self) -> bool:
        if self._running is not None or self._waiting or self._events:
            return True
        return self.current.in_flight > 0

    def renew(self, agent: str) -> None:
        self._request(lambda: self._reopen(agent))

    def connect(self, peer: Endpoint) -> None:
        self._ranks_of[peer.agent] = len(peer.ranks)
        self._request(lambda: self._connect(peer))

    def disconnect(self, agent: str) -> None:
        self._request(lambda: self.current.disconnect(agent))

    def write(self, command: WritePages) -> None:
        self._waiting.append(command)
        self._advance()

    def progress(self) -> None:
        if self._running is None:
            self.current.progress()

    def poll(self) -> list[TransportEvent]:
        """See `PageTransport`. Raises what `make` has raised."""
        self._advance()
        events, self._events = self._events, []
        if self._running is not None:
            return events
        for event in self.current.poll():
            match event:
                case WriteDone(transfer_id, num_bytes, seconds):
                    write = self._writes.pop(transfer_id)
                    error = "" if write.notice is None else self._notify(write.agent, write.notice)
                    events.append(WriteEnded(write.write_id, num_bytes, seconds, error))
                case WriteFailed(transfer_id, reason):
                    events.append(WriteEnded(self._writes.pop(transfer_id).write_id, 0, 0.0, reason))
                case Notice():
                    events.append(event)
        return events

    def close(self) -> None:
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
            if isinstance(first := self._waiting[0], WritePages):
                self._waiting.popleft()
                self._write(first)
            else:
                self._running = self._thread.submit(self._run_slow)

    def _run_slow(self) -> list[Opened]:
        """In the thread: the calls that come before the next write."""
        opened: list[Opened] = []
        while self._waiting and not isinstance(call := self._waiting[0], WritePages):
            self._waiting.popleft()
            event = call()
            opened += [] if event is None else [event]
        return opened

    def _write(self, command: WritePages) -> None:
        """Start a write. Its notice travels with pages to one rank, follows pages to several, or is all there is."""
        write_id, agent = command.write_id, command.agent
        notice = None if command.notice is None else encode_notice(command.notice)
        if notice is not None and not command.source_pages:
            self._events.append(WriteEnded(write_id, 0, 0.0, self._notify(agent, notice)))
            return
        together, later = (notice, None) if self._ranks_of.get(agent) == 1 else (None, notice)
        try:
            transfer = self.current.write(agent, command.source_pages, command.target_pages, together)
        except BatonError as error:
            self._events.append(WriteEnded(write_id, 0, 0.0, error.message))
        else:
            self._writes[transfer] = _Write(write_id, agent, later)

    def _notify(self, agent: str, notice: bytes) -> str:
        """Send a notice alone; returns the error if it cannot be sent."""
        try:
            self.current.notify(agent, notice)
        except BatonError as error:
            return error.message
        return ""

    def _reopen(self, agent: str) -> Opened:
        self.current.close()
        self.current = self.make(agent)
        return Opened(self.current.endpoint)

    def _connect(self, peer: Endpoint) -> None:
        try:
            self.current.connect(peer)
        except BatonError as error:
            log.warning(error.message)  # Each handoff that needs this peer fails with its reason
