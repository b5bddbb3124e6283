"""A look-up prefilled by one engine and answered by another: right with every page, wrong when one was corrupted."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from baton.builtin_model import CHECKPOINT
from baton.builtin_model.tasks import Task, look_up
from baton.decode_worker.role import DecodeRole
from baton.engine.batch import StepBudget
from baton.engine.checkpoint import read_config
from baton.engine.executor import TorchExecutor
from baton.engine.kv_pages import PagePool
from baton.engine.tokenizer import Tokenizer
from baton.engine.weights import load_weights
from baton.harness.hand_driven import HandDriven
from baton.harness.in_process import InProcessNetwork, InProcessTransport
from baton.prefill_worker.role import PrefillRole
from baton.protocol.gateway_messages import StepOutput
from baton.protocol.messages import (
    HandoffCommitted,
    HandoffEnded,
    Prefill,
    Reserve,
    Reserved,
    SendPages,
    Work,
)
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.worker.core.role import Role
from baton.worker.core.state import WorkerState

PAGE_SIZE = 16

T = TypeVar("T")


def _worker(name: str, role_name: RoleName, network: InProcessNetwork) -> HandDriven:
    config = read_config(CHECKPOINT)
    layout = config.page_layout(160, PAGE_SIZE, "float32", "m")
    executor = TorchExecutor(config, load_weights(CHECKPOINT, config, torch.float32), layout)
    pool = PagePool(160, PAGE_SIZE)
    state = WorkerState(name, "m", config.eos_token_ids, 4096, StepBudget(256, 4), pool)
    state.streams.attach("g", ())
    role: Role = PrefillRole(state) if role_name is RoleName.PREFILL else DecodeRole(state)
    return HandDriven(role, executor, InProcessTransport(network, executor.pages, layout, name))


def _said(worker: HandDriven, kind: type[T]) -> list[T]:
    return [message for message in worker.said if isinstance(message, kind)]


@pytest.fixture
def workers() -> tuple[HandDriven, HandDriven]:
    network = InProcessNetwork()
    source, target = _worker("p", RoleName.PREFILL, network), _worker("d", RoleName.DECODE, network)
    source.transport.connect(target.transport.endpoint)
    return source, target


def _answer(workers: tuple[HandDriven, HandDriven], task: Task, between: Callable[[HandDriven, Reserved], None]) -> str:
    """The task's answer, with `between` called after the last page arrived and before the first decode step."""
    source, target = workers
    tokenizer = Tokenizer(CHECKPOINT)
    request = Request("r", tuple(tokenizer.encode(task.prompt)), SamplingParams(max_tokens=12))
    source.perform(source.role.on_message(Prefill("r", Work(request), "g", True, 0), 0.0))
    target.perform(target.role.on_message(Reserve("r/1", "r", Work(request), "g", 0), 0.0))
    (reserved,) = _said(target, Reserved)
    assert isinstance(reserved, Reserved)
    source.perform(source.role.on_message(SendPages("r", reserved.reservation), 0.0))
    while not _said(source, HandoffEnded):
        source.turn()
    between(target, reserved)
    while not any(token.finish for output in _said(target, StepOutput) for token in output.tokens):
        target.turn()
    assert _said(target, HandoffCommitted)
    outputs = [*_said(source, StepOutput), *_said(target, StepOutput)]
    return tokenizer.decode([token.token_id for output in outputs for token in output.tokens])


@pytest.mark.parametrize("seed", [1, 2])
def test_a_look_up_is_answered_after_the_handoff(workers: tuple[HandDriven, HandDriven], seed: int) -> None:
    task = look_up(random.Random(seed), 200)
    assert _answer(workers, task, lambda target, reserved: None) == task.answer


def test_one_corrupted_page_breaks_the_answer(workers: tuple[HandDriven, HandDriven]) -> None:
    task = look_up(random.Random(1), 200)
    tokenizer = Tokenizer(CHECKPOINT)
    line = task.prompt.index("\n" + task.prompt.split("\n")[-1]) + 1  # where the asked name stands in the list
    page = len(tokenizer.encode(task.prompt[: line + len(task.prompt.split("\n")[-1])])) // PAGE_SIZE

    def corrupt(target: HandDriven, reserved: Reserved) -> None:
        pages = target.executor.pages
        pages[reserved.reservation.page_ids[page]] = pages[reserved.reservation.page_ids[page - 3]]

    assert _answer(workers, task, corrupt) != task.answer
