"""Performs the core's commands: the only module in which decisions meet sockets and the clock."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baton.config.schema import RouterSection
from baton.gateway.core.stream import TextToken
from baton.links.frame_server import FrameServer
from baton.logs import log
from baton.protocol.errors import BatonError, Cancelled, ConfigError, InvalidRequest
from baton.protocol.messages import RegisterAck, RouterMessage, WorkerMessage
from baton.protocol.request import Request
from baton.router.core.commands import Command, FinishStream, Kill, OperationUpdated, SendToWorker, StreamTokens
from baton.router.core.completion import Completion
from baton.router.core.core import RouterCore
from baton.router.core.operation import Operation, OperationSpec
from baton.router.core.worker_frames import WorkerFrames
from baton.router.log_lines import completion_line, operation_line
from baton.router.policy.output_length import OutputLength
from baton.router.policy.policies import make_policy

TICK_S = 0.1
SAVE_EVERY_S = 60.0


@dataclass(eq=False)
class Subscription:
    """The unread output of one client's stream, at most `max_tokens` tokens."""

    request_id: str
    tokens: deque[TextToken] = field(default_factory=deque)
    completion: Completion | None = None
    error: BatonError | None = None  # If set, the stream ends with it
    writing_since_s: float | None = None  # Since when a message waits for the client to read
    _ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self) -> tuple[list[TextToken], Completion | None]:
        """The tokens since the last call, and the completion at the end; waits for either.

        Raises `Cancelled` if another client has taken over the stream or this client does not read it.
        """
        await self._ready.wait()
        self._ready.clear()
        if self.error is not None:
            raise self.error
        tokens = list(self.tokens)
        self.tokens.clear()
        return tokens, self.completion

    def wake(self) -> None:
        """Let `next` return."""
        self._ready.set()

    def fail(self, error: BatonError) -> None:
        """End the stream with an error and drop its unread tokens."""
        self.error = error
        self.tokens.clear()
        self.wake()


@dataclass(eq=False)
class Driver:
    """A router: the core with its clock, its link to the workers and its clients."""

    core: RouterCore
    link: FrameServer
    frames: WorkerFrames
    clock: Callable[[], float] = time.monotonic
    config: RouterSection = field(default_factory=RouterSection)
    on_register_ack: Callable[[str], None] | None = None  # Called with the name of each worker that registers
    on_kill: Callable[[str], None] | None = None  # Kills the process of a timed-out worker, if possible
    _subscriptions: dict[str, Subscription] = field(default_factory=dict)
    _watchers: dict[str, set[asyncio.Event]] = field(default_factory=dict)  # By operation id
    _unexpected: Counter[str] = field(default_factory=Counter)  # Events that were logged, by kind

    async def run(self) -> None:
        """Serve the workers until cancelled."""
        self.link.start(self._on_frame)
        saved_s = self.clock()
        while True:
            await asyncio.sleep(TICK_S)
            now = self.clock()
            self._perform(self.core.tick(now))
            self._fail_unread(now)
            self._log_unexpected()
            if now - saved_s > SAVE_EVERY_S:
                saved_s = now
                await asyncio.to_thread(self.save_learned, self.core.output_length.snapshot())

    def _log_unexpected(self) -> None:
        """Log the kinds of events that no request should have got, with how often, when one more came."""
        seen = self.core.requests.unexpected
        for kind in [kind for kind, count in seen.items() if count != self._unexpected[kind]]:
            self._unexpected[kind] = seen[kind]
            log.warning(f"ignored an unexpected event, {seen[kind]} so far: {kind}")

    def save_learned(self, learned: OutputLength) -> None:
        """Write the learned output lengths to `state_file`, by a rename, so that a reader never sees half a file."""
        if not self.config.state_file:
            return
        try:
            path = Path(self.config.state_file)
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            fresh.write_text(learned.dumps())
            fresh.replace(path)
        except OSError as error:
            log.warning(f"The learned output lengths could not be saved: {error}")

    def _on_frame(self, worker: str, incarnation: str, batch: list[WorkerMessage]) -> None:
        """Act on a worker's frame; raises `InvalidRequest`, without any effect, if it is invalid."""
        self.frames.check(worker, incarnation, batch, self.core.state)
        self._perform(self.core.on_frame(worker, incarnation, batch, self.clock()))

    def submit(self, request: Request, emitted: Sequence[int] = (), resume_from: int = 0) -> Subscription:
        """Accept a request, or attach to the live request of the same id; raises the core's `BatonError` if refused.

        `emitted` are output tokens that the client has. A live request is streamed from token index `resume_from`.
        """
        replayed = self.core.replay(request)
        if replayed is not None:
            return self._take_over(request.request_id, replayed[resume_from:])
        commands = self.core.submit(request, self.clock(), emitted, resumed=resume_from > 0)
        subscription = self._subscriptions[request.request_id] = Subscription(request.request_id)
        self._perform(commands)
        return subscription

    def _take_over(self, request_id: str, tokens: Sequence[TextToken]) -> Subscription:
        """Give the stream to the request's newest client; an earlier client, likely disconnected, gets an error."""
        earlier = self._subscriptions.get(request_id)
        if earlier is not None:
            earlier.fail(Cancelled(f"Another client has taken over the stream of {request_id!r}."))
        subscription = self._subscriptions[request_id] = Subscription(request_id, deque(tokens))
        if tokens:
            subscription.wake()
        return subscription

    def unsubscribe(self, subscription: Subscription, error: BatonError) -> None:
        """Detach a client; a request that is not complete is stopped with `error`."""
        if self._subscriptions.get(subscription.request_id) is not subscription:
            return
        del self._subscriptions[subscription.request_id]
        if subscription.completion is None:
            self._perform(self.core.stop(subscription.request_id, error, self.clock()))

    def _fail_unread(self, now: float) -> None:
        """End streams that their clients have not read for `write_timeout_s`; gRPC keeps one message of each."""
        timeout_s = self.config.write_timeout_s
        for subscription in list(self._subscriptions.values()) if timeout_s else ():
            since_s = subscription.writing_since_s
            if since_s is not None and now - since_s > timeout_s:
                error = Cancelled(f"The client has not read its stream for {timeout_s:g} s (router.write_timeout_s).")
                self.unsubscribe(subscription, error)
                subscription.fail(error)

    def lose(self, worker: str) -> None:
        """Report a worker whose process has ended."""
        self._perform(self.core.on_worker_lost(worker, self.clock()))

    def start_operation(self, operation_id: str, spec: OperationSpec, dry_run: bool) -> Operation:
        """Start an operation, or return the one with this id; raises the core's `BatonError` if refused."""
        name = operation_id or uuid.uuid4().hex[:8]
        operation, commands = self.core.start_operation(name, spec, dry_run, self.clock())
        log.info(f"requested: {spec.title}{' (dry run)' if dry_run else ''}", extra={"operation": name})
        self._perform(commands)
        return operation

    def cancel_operation(self, operation_id: str) -> Operation:
        """Cancel an operation's remaining steps; raises `NotFound` for an unknown id."""
        operation, commands = self.core.cancel_operation(operation_id, self.clock())
        log.info("requested: cancel", extra={"operation": operation_id})
        self._perform(commands)
        return operation

    async def watch(self, operation_id: str) -> AsyncGenerator[Operation, None]:
        """The operation now and after each change, until it has ended; a slow reader skips to the latest state."""
        changed = asyncio.Event()
        watchers = self._watchers.setdefault(operation_id, set())
        watchers.add(changed)
        try:
            operation = self.core.operations.get(operation_id)
            while True:
                ended = operation.state.ended  # Its state may change while the reader is busy
                yield operation
                if ended:
                    return
                await changed.wait()
                changed.clear()
        finally:
            watchers.discard(changed)
            if not watchers:
                self._watchers.pop(operation_id, None)

    def set_policy(self, name: str) -> None:
        """Switch the placement policy for waiting and new requests; raises `InvalidRequest` for an unknown name."""
        try:
            policy = make_policy(name, self.config.refuse_late)
        except ConfigError as error:
            raise InvalidRequest(error.message) from None
        log.info(f"switched to placement policy {name}")
        self.core.dispatch.placement = policy
        self.core.dispatch.dirty = True

    def _perform(self, commands: Iterable[Command]) -> None:
        outgoing: dict[str, list[RouterMessage]] = {}
        for command in commands:
            match command:
                case SendToWorker(worker, message):
                    if isinstance(message, RegisterAck):
                        log.info(f"{worker} has registered")
                        if self.on_register_ack is not None:
                            self.on_register_ack(worker)
                    outgoing.setdefault(worker, []).append(message)
                case StreamTokens(request_id, tokens):
                    subscription = self._subscriptions.get(request_id)
                    if subscription is not None:
                        subscription.tokens.extend(tokens)
                        subscription.wake()
                case FinishStream(completion):
                    if log.isEnabledFor(logging.DEBUG):
                        log.debug(completion_line(completion), extra={"request": completion.request_id})
                    subscription = self._subscriptions.get(completion.request_id)
                    if subscription is not None:
                        subscription.completion = completion
                        subscription.wake()
                case Kill(worker):
                    if self.on_kill is not None:
                        self.on_kill(worker)
                case OperationUpdated(operation):
                    level = logging.INFO if operation.state.ended else logging.DEBUG
                    log.log(level, operation_line(operation), extra={"operation": operation.operation_id})
                    for changed in self._watchers.get(operation.operation_id, ()):
                        changed.set()
        unreachable = [worker for worker, batch in outgoing.items() if not self.link.send(worker, batch)]
        for worker in unreachable:  # Later messages depend on the lost ones
            log.warning(f"{worker} is disconnected or its queue is full: it must re-register")
            self._perform(self.core.on_worker_lost(worker, self.clock(), certain=False))
