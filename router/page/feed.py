"""Sends the page what happens: one snapshot a second, made once for all clients and only while there are any."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from baton.http.exchange import Exchange
from baton.logs import log
from baton.protocol.errors import BatonError
from baton.router.admin_calls import AdminCalls
from baton.router.admin_messages import operation_message, worker_message
from baton.router.core.completion import Completion
from baton.router.core.refusals import Refusal
from baton.router.page.api import fields
from baton.router.page.history import History
from baton.router.page.snapshots import Facts, Row, Snapshots, oldest_age_s, silence
from baton.router.page.tracks import Ended, ended_tracks, is_shown, live_tracks, request_rows, spacing
from baton.router.policy.worker_view import WorkerView

EVERY_S = 1.0
MAX_CLIENTS = 32
KEPT = 256  # Ended requests
LISTED, OPERATIONS = 40, 8  # Requests or refusals, and operations, in a snapshot
SLICE = 50  # Workers for which a snapshot holds up the event loop, for about 2 ms
OVERLAP_S = 1.0  # A phase may become known after the snapshot that follows its begin


class TooManyPages(BatonError):
    """As many clients listen as are served."""

    grpc_status = "UNAVAILABLE"
    retryable = True


@dataclass(eq=False)
class Listener:
    """One client. A slow one finds the latest snapshot, whole, in place of those that it missed."""

    unsent: bytes = b""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    def offer(self, event: bytes) -> None:
        """Replace what is unsent."""
        self.unsent = event
        self.ready.set()

    def end(self) -> None:
        """Nothing more will come."""
        self.ended = True
        self.ready.set()


@dataclass(eq=False)
class PageFeed:
    """Follows the cluster; `run` makes the snapshots."""

    calls: AdminCalls
    history: History = field(default_factory=History)
    listeners: set[Listener] = field(default_factory=set)
    _snapshots: Snapshots = field(default_factory=Snapshots)
    _ended: deque[Ended] = field(default_factory=lambda: deque(maxlen=KEPT))  # Newest first
    _shown: deque[Ended] = field(default_factory=lambda: deque(maxlen=KEPT))  # Those with a track
    _every: int = 1  # One of so many has a track
    _taking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _taken_s: float = float("-inf")
    _task: asyncio.Task[None] | None = None
    _epoch_s: float = field(init=False)  # The wall clock's time when the router's clock was 0

    def __post_init__(self) -> None:
        self._epoch_s = time.time() - self.calls.driver.clock()

    def start(self) -> None:
        """Begin to follow the cluster, on the running event loop."""
        self.calls.driver.on_completed.append(self._on_completed)
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """End all clients' streams."""
        if self._task is not None:
            self._task.cancel()
        for listener in self.listeners:
            listener.end()

    async def serve(self, exchange: Exchange, may_read: Callable[[], bool]) -> None:
        """Write snapshots to a client until it leaves, or may read no more; raises `TooManyPages`."""
        if len(self.listeners) >= MAX_CLIENTS:
            raise TooManyPages(f"{MAX_CLIENTS} pages are open, as many as the router serves: close one.")
        listener = Listener()
        self.listeners.add(listener)
        try:
            await exchange.body()
            await self._serve(exchange, listener, may_read)
        finally:
            self.listeners.discard(listener)

    async def _serve(self, exchange: Exchange, listener: Listener, may_read: Callable[[], bool]) -> None:
        gone = asyncio.ensure_future(exchange.gone())
        gone.add_done_callback(lambda _: listener.end())
        try:
            if self.calls.driver.clock() - self._taken_s >= EVERY_S:
                await self._take()
            listener.offer(self._whole())
            while True:
                await listener.ready.wait()
                if listener.ended or not may_read():
                    break
                listener.ready.clear()
                event, listener.unsent = listener.unsent, b""
                await exchange.write(event)
            await exchange.end(b"")
        finally:
            gone.cancel()

    def requests(self) -> list[dict[str, Any]]:
        """The newest requests, live ones first."""
        live = self.calls.driver.core.requests.live
        return request_rows(reversed(live.values()), self._ended, KEPT, self.calls.driver.clock())

    async def _run(self) -> None:
        next_s = time.monotonic()
        while True:
            next_s = max(next_s + EVERY_S, time.monotonic())
            await asyncio.sleep(next_s - time.monotonic())
            try:
                await self._tick()
            except Exception:  # noqa: BLE001
                log.exception("A defect has prevented a snapshot for the page.")

    async def _tick(self) -> None:
        """A second has passed."""
        core, rates = self.calls.driver.core, self.calls.driver.gateway_rates
        tokens_per_s = sum(rates.rates(name).tokens_per_s for name in core.gateways.by_name)
        self.history.tick(tokens_per_s, core.queued, core.live)
        self._every = spacing(self.history.points[-1].requests_per_s)
        if self.listeners:
            await self._take()
            self._publish()

    def _publish(self) -> None:
        """Offer the latest snapshot to every client: the changes to one that has the snapshot before."""
        changes, whole = _event(self._snapshots.changes), b""
        for listener in self.listeners:
            if listener.unsent:
                whole = whole or self._whole()
                listener.offer(whole)
            else:
                listener.offer(changes)

    def _whole(self) -> bytes:
        """The latest snapshot for a client that lacks the one before, with the tracks of all requests that run."""
        live, now = self.calls.driver.core.requests.live, self.calls.driver.clock()
        return _event(self._snapshots.whole(live_tracks(reversed(live.values()), self._every, float("-inf"), now)))

    def _on_completed(self, completion: Completion) -> None:
        self.history.ended(completion)
        ended = Ended(completion, self.calls.driver.clock())
        self._ended.appendleft(ended)
        if is_shown(completion.request_id, self._every):
            self._shown.appendleft(ended)

    async def _take(self) -> None:
        """Make the next snapshot; requests go on between slices of it."""
        async with self._taking:
            workers = dict[str, Row]()
            state = self.calls.driver.core.state
            views = sorted(state.workers.items())
            for start in range(0, len(views), SLICE):
                now = self.calls.driver.clock()
                for name, view in views[start : start + SLICE]:
                    if state.workers.get(name) is view:  # It has not left since the first slice
                        workers[name] = _row(view, now)
                await asyncio.sleep(0)
            self._snapshots.take(self._facts(workers))

    def _facts(self, workers: dict[str, Row]) -> Facts:
        core, now = self.calls.driver.core, self.calls.driver.clock()
        summary = fields(self.calls.summary())
        gateways = summary.pop("gateways")
        summary |= {"oldest_queued_s": round(oldest_age_s((one.arrival_s for one in core.dispatch.waiting), now), 2)}
        live = core.requests.live
        since_s, self._taken_s = self._taken_s - OVERLAP_S, now
        return Facts(
            summary,
            gateways,
            workers,
            [fields(operation_message(one, now)) for one in core.operations.newest()[:OPERATIONS]],
            [_refusal(one, self._epoch_s) for one in reversed(core.requests.refusals.newest)][:LISTED],
            request_rows(reversed(live.values()), self._ended, LISTED, now),
            self._every,
            ended_tracks(self._shown, since_s, now) + live_tracks(reversed(live.values()), self._every, since_s, now),
            [point.row() for point in self.history.points],
        )


def _row(view: WorkerView, now: float) -> Row:
    """A worker's figures (`snapshots.COLUMNS`)."""
    one = worker_message(view, now)
    return (
        *(view.role.value, one.state, one.host, one.device),
        *(one.pages_total, one.pages_in_use, one.pages_cached, one.predicted_peak_pages),
        *(one.running, one.waiting, one.swapped, one.pending_prefill_tokens, one.context_tokens),
        *(round(one.predicted_busy_s, 1), round(1000 * one.predicted_tpot_s, 1), silence(one.last_report_s)),
        (*one.rank_pids,),
    )


def _refusal(one: Refusal, epoch_s: float) -> dict[str, Any]:
    """As JSON, with the time of the wall clock."""
    return {
        "at": round(epoch_s + one.at_s),
        "id": one.request_id,
        "gateway": one.gateway,
        "cause": one.cause,
        "message": one.message,
    }


def _event(snapshot: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(snapshot) + b"\n\n"
