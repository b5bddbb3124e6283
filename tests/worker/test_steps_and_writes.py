"""Pages are sent once the step that computes them has ended, though the transport runs while it does."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from baton.builtin_model import CHECKPOINT
from baton.builtin_model.tasks import look_up
from baton.engine.batch import StepBudget
from baton.engine.checkpoint import read_config
from baton.engine.executor import TorchExecutor
from baton.engine.host_pages import HostPages
from baton.engine.kv_pages import PagePool
from baton.engine.step import StepPlan, StepResult
from baton.engine.tokenizer import Tokenizer
from baton.engine.weights import load_weights
from baton.kv_transfer.nixl import NixlTransport
from baton.protocol.gateway_messages import StepOutput
from baton.protocol.messages import HandoffCommitted, HandoffEnded, Prefill, Reserve, Reserved, SendPages, Work
from baton.protocol.request import Request, SamplingParams
from baton.protocol.session_messages import PeerJoined
from baton.protocol.worker import RoleName, WorkerInfo
from baton.worker.background_transport import BackgroundTransport
from baton.worker.core.state import WorkerState
from baton.worker.loop import WorkerLoop
from baton.worker.session import WorkerSession
from baton.worker.step_wait import PAUSE_S, TIGHT_S, await_step
from tests.worker.loops import FakeHeartbeat, FakeLinks, open_gateway

LOOKS = 3  # at a step before it is done


@dataclass(eq=False)
class Late:
    """A device that is slow: a launched step is computed as late as it may be, when it is collected."""

    engine: TorchExecutor
    launched: StepPlan | None = None
    looks: int = 0
    steps: int = 0
    async_execution: bool = True

    def launch(self, plan: StepPlan) -> StepPlan:
        assert self.launched is None
        self.launched, self.looks = plan, LOOKS
        return plan

    def done(self, launched: StepPlan) -> bool:
        self.looks -= 1
        return self.looks < 0

    def collect(self, launched: StepPlan) -> StepResult:
        assert launched is self.launched
        self.launched, self.steps = None, self.steps + 1
        return self.engine.execute(launched)


class WatchedTransport(NixlTransport):
    """NIXL over host memory, which copies in `write`: what is sent too early arrives without the step's KV."""

    late: Late
    progressed = 0
    written_after: list[int]

    def progress(self) -> None:
        self.progressed += self.late.launched is not None
        super().progress()

    def poll(self) -> list[Any]:
        assert self.late.launched is None, "events are received while a step runs"
        return super().poll()

    def write(self, *arguments: Any) -> int:
        assert self.late.launched is None, "pages are sent while a step runs"
        self.written_after.append(self.late.steps)
        return super().write(*arguments)


def _worker(name: str, role: RoleName) -> tuple[WorkerLoop, FakeLinks]:
    config = read_config(CHECKPOINT)
    layout = config.page_layout(160, 16, "float32", "m")
    late = Late(TorchExecutor(config, load_weights(CHECKPOINT, config, torch.float32), layout))

    def transport(agent: str) -> WatchedTransport:
        made = WatchedTransport(late.engine.pages, layout, agent)
        made.late, made.written_after = late, []
        return made

    state = WorkerState(f"{name}:1", "m", config.eos_token_ids, 4096, StepBudget(64, 4), PagePool(160, 16))
    info = WorkerInfo(name, "1", role, 0, transport(f"{name}:0").endpoint, 64, 4)
    link = FakeLinks()
    session = WorkerSession(info, state, lambda: "2")
    loop = WorkerLoop(
        session,
        late,
        link,  # type: ignore[arg-type]
        BackgroundTransport(transport, session.agent),
        FakeHeartbeat(),  # type: ignore[arg-type]
        late.engine.page_checksum,
        HostPages(late.engine.pages, 0),
    )
    open_gateway(loop, link)
    return loop, link


def _until(kind: type, link: FakeLinks, *loops: WorkerLoop) -> Any:
    deadline = time.monotonic() + 60.0
    while True:
        found = [message for message in link.sent if isinstance(message, kind)]
        if found:
            return found[-1]
        assert time.monotonic() < deadline, kind
        for loop in loops:
            loop._turn()


def test_a_chunks_pages_are_sent_after_it_was_collected_and_while_the_next_one_runs_only_the_transport_does() -> None:
    task, tokenizer = look_up(random.Random(1), 40), Tokenizer(CHECKPOINT)
    request = Request("r", tuple(tokenizer.encode(task.prompt)), SamplingParams(max_tokens=12))
    (source, at_source), (target, at_target) = _worker("p", RoleName.PREFILL), _worker("d", RoleName.DECODE)
    at_source.inbox.append(PeerJoined(target.transport.endpoint))
    at_target.inbox += [PeerJoined(source.transport.endpoint), Reserve("r/1", "r", Work(request), "g", 0)]
    reserved = _until(Reserved, at_target, target)
    source._turn()
    while source.transport.in_flight:  # Until they have exchanged greetings
        target._turn()
        source._turn()
    at_source.inbox += [Prefill("r", Work(request), "g", True, 0), SendPages("r", reserved.reservation)]
    _until(HandoffEnded, at_source, source, target)
    _until(HandoffCommitted, at_target, source, target)
    while not any(token.finish for output in _said(at_target) for token in output.tokens):
        target._turn()
    tokens = [token.token_id for output in [*_said(at_source), *_said(at_target)] for token in output.tokens]
    assert tokenizer.decode(tokens) == task.answer
    chunks = -(-len(request.prompt) // 64)
    background = source.transport
    assert isinstance(background, BackgroundTransport)
    transport = background.current
    assert isinstance(transport, WatchedTransport)
    assert transport.written_after == list(range(1, chunks + 1))
    assert transport.progressed == LOOKS * chunks
    for loop in (source, target):
        loop.transport.close()


def _said(link: FakeLinks) -> list[StepOutput]:
    return [message for message in link.sent if isinstance(message, StepOutput)]


@dataclass(eq=False)
class Clock:
    """Time as it was measured: a look at a step with a poll takes 2 µs, a pause 70 µs more than it is asked for."""

    step_s: float
    now_s: float = 0.0
    computed_s: float = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds + 70e-6

    def done(self, launched: object) -> bool:
        return self.now_s >= self.step_s

    def progress(self) -> None:
        self.now_s += 2e-6
        self.computed_s += 2e-6


@pytest.mark.parametrize("step_s", [0.0, 0.001, 0.005, 0.0101, 0.012, 0.02, 0.05, 0.25])
def test_a_long_step_takes_no_core_and_none_is_seen_late(step_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(step_s)
    monkeypatch.setattr("baton.worker.step_wait.time", clock)
    await_step(clock, None, clock)  # type: ignore[arg-type]
    late_s = clock.now_s - step_s
    assert late_s <= (2e-6 if step_s <= TIGHT_S else PAUSE_S + 72e-6)
    assert late_s <= 0.018 * step_s
    assert clock.computed_s <= TIGHT_S + 0.02 * step_s
