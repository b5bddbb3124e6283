"""A worker driven by hand: a role over a real engine and transport, without router, link or loop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from baton.kv_transfer.transport import Notice, Transport, WriteDone, WriteFailed
from baton.protocol.codec import decode_notice, encode_notice
from baton.protocol.gateway_messages import TokenMessage
from baton.protocol.messages import WorkerMessage
from baton.worker.core.role import Command, HandoffTarget, Role, Send, SendToGateway, WriteEnded, WritePages


@dataclass(eq=False)
class HandDriven:
    """A role, its executor and its transport; `turn` is one turn of a worker's loop."""

    role: Role
    executor: Any
    transport: Transport
    said: list[WorkerMessage | TokenMessage] = field(default_factory=list)
    _writes: dict[int, int] = field(default_factory=dict)

    def perform(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Send | SendToGateway):
                self.said.append(command.message)
            elif isinstance(command, WritePages):
                notice = encode_notice(command.notice) if command.notice else None
                transfer = self.transport.write(command.agent, command.source_pages, command.target_pages, notice)
                self._writes[transfer] = command.write_id

    def turn(self) -> bool:
        """One turn; returns whether there was anything to compute."""
        commands, plan = self.role.plan(time.monotonic())
        self.perform(commands)
        if plan is not None:
            result = self.executor.execute(plan)
            self.poll()
            self.perform(self.role.absorb(plan, result, time.monotonic()))
        self.poll()
        return plan is not None

    def poll(self) -> None:
        for event in self.transport.poll():
            match event:
                case WriteDone(transfer_id, num_bytes, seconds):
                    outcome = WriteEnded(self._writes.pop(transfer_id), num_bytes, seconds)
                    self.perform(self.role.on_write_ended(outcome, time.monotonic()))
                case WriteFailed(transfer_id, reason):
                    outcome = WriteEnded(self._writes.pop(transfer_id), 0, 0.0, reason)
                    self.perform(self.role.on_write_ended(outcome, time.monotonic()))
                case Notice(_, payload) if isinstance(self.role, HandoffTarget):
                    self.perform(self.role.on_notice(decode_notice(payload), time.monotonic()))

    def received(self, kind: type) -> list[Any]:
        """Remove and return the messages of this kind."""
        found = [message for message in self.said if isinstance(message, kind)]
        self.said = [message for message in self.said if not isinstance(message, kind)]
        return found

    def until(self, kind: type, timeout_s: float = 60.0) -> Any:
        """Turn until it sends a message of this kind, and return it; raises `TimeoutError`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.received(kind)
            if found:
                return found[0]
            if not self.turn() and time.monotonic() > deadline:
                raise TimeoutError(f"No {kind.__name__} within {timeout_s:g} s.")
