"""Performs the core's commands: the only module in which decisions meet sockets and the clock."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton.config.schema import RouterSection
from baton.links.frame_server import FrameServer
from baton.logs import log
from baton.metrics.gateway_table import LOOP_LAG
from baton.metrics.router_table import DECISION
from baton.metrics.values import Distribution
from baton.protocol.errors import ConfigError, InvalidRequest
from baton.protocol.gateway_messages import GatewayLoad, GatewayRegistered
from baton.protocol.session_messages import RegisterAck
from baton.router.core.commands import (
    Command,
    Kill,
    OperationUpdated,
    RequestCompleted,
    SendToGateway,
    SendToWorker,
)
from baton.router.core.completion import Completion
from baton.router.core.core import RouterCore
from baton.router.core.operation import Operation, OperationSpec
from baton.router.core.peer_frames import PeerFrames
from baton.router.gateway_rates import GatewayRates
from baton.router.log_lines import completion_line, operation_line
from baton.router.policy.output_length import OutputLength
from baton.router.policy.policies import make_policy

TICK_S = 0.1
SAVE_EVERY_S = 60.0


@dataclass(eq=False)
class Driver:
    """A router: the core with its clock and its link to workers and gateways."""

    core: RouterCore
    link: FrameServer
    frames: PeerFrames
    clock: Callable[[], float] = time.monotonic
    config: RouterSection = field(default_factory=RouterSection)
    on_registered: Callable[[str], None] | None = None  # Called with the name of each worker or gateway that registers
    on_kill: Callable[[str], None] | None = None  # Kills the process of a timed-out worker or gateway
    on_completed: list[Callable[[Completion], None]] = field(default_factory=list)  # Each is called with every request
    on_operation_ended: list[Callable[[Operation], None]] = field(default_factory=list)
    loop_lag: Distribution = field(default_factory=lambda: Distribution(LOOP_LAG.buckets))
    decisions: Distribution = field(default_factory=lambda: Distribution(DECISION.buckets))  # Seconds per frame
    on_serving: Callable[[bool], Awaitable[None]] | None = None  # Called when workers of all roles serve, or no more
    gateway_rates: GatewayRates = field(default_factory=GatewayRates)
    _watchers: dict[str, set[asyncio.Event]] = field(default_factory=dict)  # By operation id
    _unexpected: Counter[str] = field(default_factory=Counter)  # Events that were logged, by kind

    async def run(self) -> None:
        """Serve workers and gateways until cancelled."""
        self.link.start(self._on_frame)
        saved_s, serving = self.clock(), False
        while True:
            due_s = self.clock() + TICK_S
            await asyncio.sleep(TICK_S)
            now = self.clock()
            self.loop_lag.add(max(0.0, now - due_s))
            self._perform(self.core.tick(now))
            self._log_unexpected()
            self.gateway_rates.keep(self.core.gateways.by_name)
            if serving == bool(self.core.gateways.pools.missing):
                serving = not serving
                if self.on_serving is not None:
                    await self.on_serving(serving)
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

    def _on_frame(self, peer: str, incarnation: str, batch: list[Any]) -> None:
        """Act on a worker's or a gateway's frame; raises `InvalidRequest`, without any effect, if it is invalid."""
        self.frames.check(peer, incarnation, batch, self.core.state, self.core.gateways.by_name)
        now = self.clock()
        for message in batch:
            if isinstance(message, GatewayLoad):
                self.gateway_rates.report(peer, incarnation, message, now)
        self._perform(self.core.on_frame(peer, incarnation, batch, now))
        self.decisions.add(self.clock() - now)

    def lose(self, name: str) -> None:
        """Report a worker or a gateway whose process has ended."""
        self._lose(name, certain=True)

    def _lose(self, name: str, certain: bool) -> None:
        if self.core.gateways.has_process(name):
            self._perform(self.core.on_gateway_lost(name, self.clock(), certain))
        else:
            self._perform(self.core.on_worker_lost(name, self.clock(), certain))

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
        outgoing: dict[str, list[Any]] = {}
        for command in commands:
            match command:
                case SendToWorker(peer, message) | SendToGateway(peer, message):
                    if isinstance(message, RegisterAck | GatewayRegistered):
                        self._on_registered(peer)
                    outgoing.setdefault(peer, []).append(message)
                case RequestCompleted(completion):
                    if log.isEnabledFor(logging.DEBUG):
                        log.debug(completion_line(completion), extra={"request": completion.request_id})
                    for on_completed in self.on_completed:
                        on_completed(completion)
                case Kill(peer):
                    if self.on_kill is not None:
                        self.on_kill(peer)
                case OperationUpdated(operation):
                    level = logging.INFO if operation.state.ended else logging.DEBUG
                    log.log(level, operation_line(operation), extra={"operation": operation.operation_id})
                    for on_ended in self.on_operation_ended if operation.state.ended else ():
                        on_ended(operation)
                    for changed in self._watchers.get(operation.operation_id, ()):
                        changed.set()
        unreachable = [peer for peer, batch in outgoing.items() if not self.link.send(peer, batch)]
        for peer in unreachable:  # Later messages depend on the lost ones
            log.warning(f"{peer} is disconnected or its queue is full: it must re-register")
            self._lose(peer, certain=False)

    def _on_registered(self, peer: str) -> None:
        log.info(f"{peer} has registered")
        if self.on_registered is not None:
            self.on_registered(peer)
