"""Performs the session's commands: the only module in which a gateway's decisions meet sockets and the clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from baton.gateway.core.commands import (
    AcceptWorker,
    Command,
    EndStream,
    ForgetWorker,
    SendToRouter,
    SendToWorker,
    ShowPrompt,
    ShowTokens,
    StreamEnd,
)
from baton.gateway.core.live_stream import taken_over
from baton.gateway.core.session import GatewaySession
from baton.gateway.ended_request import EndedRequest, RefusedRequest
from baton.gateway.subscription import Subscription
from baton.links.frame_client import FrameClient
from baton.links.frame_server import FrameServer
from baton.logs import log
from baton.metrics.gateway_table import LOOP_LAG
from baton.metrics.values import Distribution
from baton.protocol.errors import BatonError, Cancelled, InvalidRequest, NoRouter, NoWorkers
from baton.protocol.gateway_messages import GatewayMessage, GatewayRegistered, Submit, ToGateway, TokenMessage
from baton.protocol.request import Request
from baton.protocol.session_messages import Goodbye
from baton.tracing.request_trace import RequestTrace

if TYPE_CHECKING:
    from baton.gateway.request_spans import RequestSpans

TICK_S = 0.1
LOAD_EVERY_S = 1.0


async def _no_change(ready: bool) -> None:
    """In place of a health service."""


@dataclass(eq=False)
class GatewayDriver:
    """A gateway: the session with its clock, its links to router and workers, and its clients."""

    session: GatewaySession
    router: FrameClient
    workers: FrameServer
    write_timeout_s: float  # 0: never
    waiting_bytes: Callable[[], int] = int  # Of text that waits for tokenisation
    on_ready: Callable[[bool], Awaitable[None]] = _no_change  # Called when `ready` changes
    on_first_token: list[Callable[[Subscription], None]] = field(default_factory=list)  # Of every new stream
    stopping: bool = False
    on_ended: list[Callable[[EndedRequest], None]] = field(default_factory=list)  # Each is called with every request
    on_refused: list[Callable[[RefusedRequest], None]] = field(default_factory=list)  # As `on_ended`
    loop_lag: Distribution = field(default_factory=lambda: Distribution(LOOP_LAG.buckets))
    traces: RequestSpans | None = None  # None: without tracing
    clock: Callable[[], float] = time.monotonic
    worker_keys: dict[str, str] = field(default_factory=dict)  # Public keys of the workers that may connect, by name
    registered: asyncio.Event = field(default_factory=asyncio.Event)  # The router has answered the registration
    http_ids: set[str] = field(default_factory=set)  # Of live answers over HTTP, also of sequences that wait
    _subscriptions: dict[str, Subscription] = field(default_factory=dict)
    _router_full: bool = False  # The router's link did not take a frame
    _router_lost_s: float = field(init=False)
    _dropped: tuple[int, int] = (0, 0)  # Tokens that were dropped and logged

    def __post_init__(self) -> None:
        self._router_lost_s = self.clock()

    @property
    def serving(self) -> bool:
        """Whether new requests are answered: the router is there, or has been away for no longer than they wait."""
        return self.session.router_up or self.clock() - self._router_lost_s < self.session.router_grace_s

    @property
    def unready(self) -> BatonError | None:
        """Why new requests would not be answered at once: the gateway stops, no router, no worker of a needed role."""
        if self.stopping:
            return NoRouter("This gateway is stopping.")
        if not self.serving:
            return NoRouter("The router is away.")
        missing = self.session.workers.pools.missing
        return NoWorkers(f"No {missing} worker serves now.") if missing else None

    @property
    def ready(self) -> bool:
        """Whether the router is there (or away for no longer than requests wait) and each needed role has a worker."""
        return self.unready is None

    async def run(self) -> None:
        """Serve until cancelled."""
        self.workers.start(self._on_worker_frame)
        self.router.start(self._on_router)
        load_s, ready = self.clock(), False
        while True:
            due_s = self.clock() + TICK_S
            await asyncio.sleep(TICK_S)
            now = self.clock()
            self.loop_lag.add(max(0.0, now - due_s))
            self._perform(self.session.tick(now))
            self._fail_unread(now)
            unready = self.unready
            if ready != (unready is None):
                ready = unready is None
                if unready is None:
                    log.info("ready")
                else:
                    log.warning(f"not ready: {unready}")
                await self.on_ready(ready)
            if now - load_s >= LOAD_EVERY_S:
                load_s = now
                self._report(now)

    def open(
        self,
        request: Request,
        emitted: Sequence[int] = (),
        resume_from: int = 0,
        api: str = "grpc",
        trace: RequestTrace | None = None,
    ) -> Subscription:
        """Open a stream, or take over the live one of the same request; raises the session's `BatonError`.

        `emitted` are output tokens that the client has. A live request is streamed from token index `resume_from`. Its
        earlier client, likely disconnected, gets an error. `api` is that of the client, "grpc" or "http". A stream
        that is taken over stays in its first client's `trace`.
        """
        request_id = request.request_id
        if api == "grpc" and request_id in self.http_ids:
            raise InvalidRequest(f"Request id {request_id!r} is in use by another live request; choose another.")
        commands = self.session.open(request, self.clock(), emitted, resume_from)
        earlier = self._subscriptions.get(request_id)
        if earlier is not None and earlier.end is None:
            earlier.fail(taken_over(request_id))
            trace = earlier.trace
        subscription = self._subscriptions[request_id] = Subscription(request, api, resume_from > 0, trace)
        self._perform(commands)
        return subscription

    def close(self, subscription: Subscription, error: BatonError) -> None:
        """Detach a client; a request that is not complete is stopped with `error`."""
        if self._subscriptions.get(subscription.request_id) is not subscription:
            return
        del self._subscriptions[subscription.request_id]
        if subscription.end is None:
            now, end = self.clock(), self.session.streams[subscription.request_id].end(error)
            self._perform(self.session.leave(subscription.request_id, error, now))
            self._ended(subscription, end, now)

    def _ended(self, subscription: Subscription, end: StreamEnd, now: float) -> None:
        ended = EndedRequest(subscription.request, end, subscription.api, subscription.resumed, now, subscription.trace)
        for listener in self.on_ended:
            listener(ended)

    def refuse(self, refused: RefusedRequest) -> None:
        """Report a request that gets an error in place of a stream."""
        for listener in self.on_refused:
            listener(refused)

    def _traced(self, submit: Submit) -> Submit:
        """With the trace of its client's stream."""
        subscription = self._subscriptions.get(submit.request_id)
        trace = subscription.trace if subscription is not None else None
        return submit if trace is None else replace(submit, trace=trace.context)

    async def begin_stop(self) -> None:
        """Be ready for no request from now on; running streams go on."""
        self.stopping = True
        await self.on_ready(False)

    def leave(self) -> None:
        """Send the goodbye to the router, so that it does not wait for this gateway."""
        if self.session.router_up:
            self.router.send([Goodbye("stopped")])

    def _fail_unread(self, now: float) -> None:
        """End streams that their clients have not read for `write_timeout_s`; gRPC keeps one message of each."""
        timeout_s = self.write_timeout_s
        for subscription in list(self._subscriptions.values()) if timeout_s else ():
            since_s = subscription.writing_since_s
            if since_s is not None and now - since_s > timeout_s:
                error = Cancelled(f"The client has not read its stream for {timeout_s:g} s (gateway.write_timeout_s).")
                self.close(subscription, error)
                subscription.fail(error)

    def _report(self, now: float) -> None:
        """Send the load, log what was dropped, and try a link again that did not take a frame."""
        session = self.session
        dropped = session.workers.invalid_tokens, session.workers.refused_tokens
        if dropped != self._dropped:
            log.warning(f"dropped tokens so far: {dropped[0]} outside the vocabulary, {dropped[1]} of unknown workers")
            self._dropped = dropped
        if self._router_full:
            self._router_full = False
            self._perform(session.on_router_link(True, now))
        elif self.registered.is_set():
            self._send_to_router([session.load(time.process_time(), self.waiting_bytes())])

    def _on_router(self, changes: list[bool], batch: list[ToGateway]) -> None:
        """Messages arrived before a change of the connection: the router sends none before it is registered with."""
        now = self.clock()
        for message in batch:
            self._perform(self.session.on_router_message(message, now))
            if isinstance(message, GatewayRegistered):
                self.registered.set()
        for up in changes:
            self._router_full = False
            if up:
                log.info("connected to the router")
                self._perform(self.session.on_router_link(True, now))
            else:
                log.warning("lost the connection to the router")
                self._on_router_lost(now)

    def _on_router_lost(self, now: float) -> None:
        self.registered.clear()
        if self.session.router_up:
            self._router_lost_s = now
        self._perform(self.session.on_router_link(False, now))

    def _on_worker_frame(self, worker: str, incarnation: str, batch: list[TokenMessage]) -> None:
        self._perform(self.session.on_worker_messages(worker, incarnation, batch, self.clock()))

    def _send_to_router(self, batch: list[GatewayMessage]) -> None:
        if not self.router.send(batch) and not self._router_full:
            log.warning("the router takes no more messages: registering again in a second")
            self._router_full = True
            self._on_router_lost(self.clock())

    def _perform(self, commands: Iterable[Command]) -> None:
        to_router: list[GatewayMessage] = []
        for command in commands:
            match command:
                case ShowTokens(request_id, tokens):
                    subscription = self._subscriptions.get(request_id)
                    if subscription is not None and subscription.error is None:
                        subscription.show(tokens)
                        if not tokens[0].index:
                            for listener in self.on_first_token:
                                listener(subscription)
                case ShowPrompt(logprobs):
                    subscription = self._subscriptions.get(logprobs.request_id)
                    if subscription is not None and subscription.error is None:
                        subscription.show_prompt(logprobs)
                case EndStream(end):
                    subscription = self._subscriptions.get(end.request_id)
                    if subscription is not None:
                        subscription.finish(end)
                        self._ended(subscription, end, self.clock())
                case SendToRouter(message):
                    if self.traces is not None and isinstance(message, Submit):
                        message = self._traced(message)
                    to_router.append(message)
                case SendToWorker(worker, message):
                    self.workers.send(worker, [message])  # If it is lost, the worker asks again with `LinkUp`
                case AcceptWorker(worker, public_key):
                    self.worker_keys[worker] = public_key
                case ForgetWorker(worker):
                    self.worker_keys.pop(worker, None)
                    self.workers.forget(worker)
        if to_router:
            self._send_to_router(to_router)
