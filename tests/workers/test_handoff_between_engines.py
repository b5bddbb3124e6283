"""A look-up prefilled by one engine and answered by another: right with every page, wrong when one was corrupted."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
import torch

from baton.wire import decode_notice, encode_notice
from builtin_model import CHECKPOINT
from builtin_model.tasks import Task, look_up
from cluster.messages import (
    HandoffCommitted,
    HandoffEnded,
    Prefill,
    Reserve,
    Reserved,
    SendPages,
    StepOutput,
    WorkerMessage,
)
from cluster.request import Request, SamplingParams
from cluster.worker import RoleName
from decode_worker.role import DecodeRole
from engine.batch import StepBudget
from engine.checkpoint import read_config
from engine.executor import TorchExecutor
from engine.kv_pages import PagePool
from engine.tokenizer import Tokenizer
from engine.weights import load_weights
from kv_transfer.in_process import InProcessNetwork, InProcessTransport
from kv_transfer.transport import Notice, WriteDone
from prefill_worker.role import PrefillRole
from worker.role import Command, Role, Send, WriteEnded, WritePages
from worker.state import WorkerState

PAGE_SIZE = 16

T = TypeVar("T")


@dataclass(eq=False)
class Worker:
    """A role with a real engine, driven by hand."""

    name: str
    role_name: RoleName
    network: InProcessNetwork
    said: list[WorkerMessage] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = read_config(CHECKPOINT)
        layout = config.page_layout(160, PAGE_SIZE, "float32", "m")
        self.executor = TorchExecutor(config, load_weights(CHECKPOINT, config, torch.float32), layout)
        self.transport = InProcessTransport(self.network, self.executor.pages, layout, self.name)
        pool = PagePool(160, PAGE_SIZE)
        state = WorkerState(self.name, "m", config.eos_token_ids, 4096, StepBudget(256, 4), pool)
        prefills = self.role_name is RoleName.PREFILL
        self.role: Role = PrefillRole(state) if prefills else DecodeRole(state)
        self.writes: dict[int, int] = {}

    def perform(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Send):
                self.said.append(command.message)
            elif isinstance(command, WritePages):
                notice = encode_notice(command.notice) if command.notice else None
                transfer = self.transport.write(command.agent, command.source_pages, command.target_pages, notice)
                self.writes[transfer] = command.write_id

    def turn(self) -> None:
        copies, plan = self.role.plan(0.0)
        self.perform(copies)
        if plan is not None:
            self.perform(self.role.absorb(plan, self.executor.execute(plan), 0.0))
        for event in self.transport.poll():
            if isinstance(event, WriteDone):
                ended = WriteEnded(self.writes.pop(event.transfer_id), event.num_bytes, event.seconds)
                self.perform(self.role.on_write_ended(ended, 0.0))
            elif isinstance(event, Notice):
                self.perform(self.role.on_notice(decode_notice(event.payload), 0.0))

    def heard(self, kind: type[T]) -> list[T]:
        return [message for message in self.said if isinstance(message, kind)]


@pytest.fixture
def workers() -> tuple[Worker, Worker]:
    network = InProcessNetwork()
    source, target = Worker("p", RoleName.PREFILL, network), Worker("d", RoleName.DECODE, network)
    source.transport.connect(target.transport.endpoint)
    return source, target


def _answer(workers: tuple[Worker, Worker], task: Task, between: Callable[[Worker, Reserved], None]) -> str:
    """The task's answer, with `between` called after the last page arrived and before the first decode step."""
    source, target = workers
    tokenizer = Tokenizer(CHECKPOINT)
    request = Request("r", tuple(tokenizer.encode(task.prompt)), SamplingParams(max_tokens=12))
    source.perform(source.role.on_message(Prefill(request, (), True, 0), 0.0))
    target.perform(target.role.on_message(Reserve("r/1", request, (), 0), 0.0))
    (reserved,) = target.heard(Reserved)
    assert isinstance(reserved, Reserved)
    source.perform(source.role.on_message(SendPages("r", reserved.reservation), 0.0))
    while not source.heard(HandoffEnded):
        source.turn()
    between(target, reserved)
    while not any(token.finish for output in target.heard(StepOutput) for token in output.tokens):
        target.turn()
    assert target.heard(HandoffCommitted)
    outputs = [*source.heard(StepOutput), *target.heard(StepOutput)]
    return tokenizer.decode([token.token_id for output in outputs for token in output.tokens])


@pytest.mark.parametrize("seed", [1, 2])
def test_a_look_up_is_answered_after_the_handoff(workers: tuple[Worker, Worker], seed: int) -> None:
    task = look_up(random.Random(seed), 200)
    assert _answer(workers, task, lambda target, reserved: None) == task.answer


def test_one_corrupted_page_breaks_the_answer(workers: tuple[Worker, Worker]) -> None:
    task = look_up(random.Random(1), 200)
    tokenizer = Tokenizer(CHECKPOINT)
    line = task.prompt.index("\n" + task.prompt.split("\n")[-1]) + 1  # where the asked name stands in the list
    page = len(tokenizer.encode(task.prompt[: line + len(task.prompt.split("\n")[-1])])) // PAGE_SIZE

    def corrupt(target: Worker, reserved: Reserved) -> None:
        pages = target.executor.pages
        pages[reserved.reservation.page_ids[page]] = pages[reserved.reservation.page_ids[page - 3]]

    assert _answer(workers, task, corrupt) != task.answer
