"""Log-probabilities of prompts equal transformers', whatever is cached, however prompts are chunked and handed over."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from baton.decode_worker.role import DecodeRole
from baton.engine import prompt_scores
from baton.engine.batch import StepBudget
from baton.engine.executor import TorchExecutor
from baton.engine.kv_pages import PagePool
from baton.harness.hand_driven import HandDriven
from baton.harness.in_process import InProcessNetwork, InProcessTransport
from baton.prefill_worker.role import PrefillRole
from baton.protocol.gateway_messages import StepOutput, TokenOutput
from baton.protocol.messages import HandoffEnded, Prefill, Reserve, Reserved, SendPages, Work
from baton.protocol.prompt_logprobs import PromptLogprobs
from baton.protocol.request import Request, SamplingParams
from baton.worker.core.role import Role
from baton.worker.core.state import WorkerState
from tests.checkpoints import build_checkpoint
from tests.engine.running import load_executor

PROMPT = tuple(random.Random(5).choices(range(2, 320), k=101))
LIKELY = 3
PLAIN = SamplingParams(max_tokens=6, ignore_eos=True)
SCORED = SamplingParams(max_tokens=6, ignore_eos=True, prompt_logprobs=LIKELY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("scored"), "qwen3")


@pytest.fixture(scope="module")
def expected(folder: Path) -> torch.Tensor:
    """Transformers' log-probabilities `[positions, vocab]`."""
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return reference(torch.tensor([PROMPT])).logits[0].log_softmax(-1)


def _worker(name: str, executor: TorchExecutor, chunk: int, network: InProcessNetwork, prefills: bool) -> HandDriven:
    pool = PagePool(executor.layout.num_pages, executor.layout.page_size)
    state = WorkerState(name, "m", frozenset(), 512, StepBudget(chunk, 4), pool)
    state.streams.attach("g", ())
    role: Role = PrefillRole(state) if prefills else DecodeRole(state)
    return HandDriven(role, executor, InProcessTransport(network, executor.pages, executor.layout, name))


def _alone(worker: HandDriven, request_id: str, sampling: SamplingParams) -> list[PromptLogprobs | TokenOutput]:
    """What a worker sends for a request that it runs alone: log-probabilities of the prompt, and tokens."""
    work = Work(Request(request_id, PROMPT, sampling))
    worker.perform(worker.role.on_message(Prefill(request_id, work, "g", False, 0), 0.0))
    while worker.turn():
        pass
    return _sent(worker)


def _handed_over(
    source: HandDriven, target: HandDriven, request_id: str, sampling: SamplingParams
) -> list[PromptLogprobs | TokenOutput]:
    work = Work(Request(request_id, PROMPT, sampling))
    source.perform(source.role.on_message(Prefill(request_id, work, "g", True, 0), 0.0))
    target.perform(target.role.on_message(Reserve(f"{request_id}/1", request_id, work, "g", 0), 0.0))
    (reserved,) = target.received(Reserved)
    source.perform(source.role.on_message(SendPages(request_id, reserved.reservation), 0.0))
    while not source.received(HandoffEnded):
        source.turn()
    while not any(
        token.finish for message in target.said if isinstance(message, StepOutput) for token in message.tokens
    ):
        target.turn()
    return _sent(source) + _sent(target)


def _sent(worker: HandDriven) -> list[PromptLogprobs | TokenOutput]:
    sent: list[PromptLogprobs | TokenOutput] = []
    for message in worker.said:
        if isinstance(message, PromptLogprobs):
            sent.append(message)
        elif isinstance(message, StepOutput):
            sent += message.tokens
    worker.said.clear()
    return sent


def _check(sent: list[PromptLogprobs | TokenOutput], expected: torch.Tensor) -> list[int]:
    """The scores equal the expected ones and come before the tokens, which nothing cached has shortened."""
    parts = [item for item in sent if isinstance(item, PromptLogprobs)]
    tokens = [item for item in sent if isinstance(item, TokenOutput)]
    assert sent == [*parts, *tokens]
    entries = [entry for part in parts for entry in part.entries()]
    assert [index for index, _, _ in entries] == list(range(1, len(PROMPT)))
    own = torch.tensor([logprob for _, logprob, _ in entries])
    assert (own - expected[torch.arange(len(PROMPT) - 1), torch.tensor(PROMPT[1:])]).abs().max() < 1e-4
    likeliest = expected[:-1].topk(LIKELY)
    assert [[token for token, _ in likely] for _, _, likely in entries] == likeliest.indices.tolist()
    values = torch.tensor([[logprob for _, logprob in likely] for _, _, likely in entries])
    assert (values - likeliest.values).abs().max() < 1e-4
    assert tokens[0].cached_tokens == 0
    return [token.token_id for token in tokens]


@pytest.mark.parametrize("chunk", [7, 16, 64, 512])
@pytest.mark.parametrize("handoff", [False, True], ids=["one worker", "handoff"])
def test_they_are_those_of_transformers_beside_a_cached_prefix(
    folder: Path, expected: torch.Tensor, chunk: int, handoff: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_scores, "MAX_LOGITS", 320 * 10)  # Ten positions at a time
    network = InProcessNetwork()
    executors = [load_executor(folder) for _ in range(2)]
    workers = [_worker(name, executors[name == "d"], chunk, network, handoff and name == "p") for name in "pd"]
    workers[0].transport.connect(workers[1].transport.endpoint)

    def run(request_id: str, sampling: SamplingParams) -> list[PromptLogprobs | TokenOutput]:
        if handoff:
            return _handed_over(workers[0], workers[1], request_id, sampling)
        return _alone(workers[0], request_id, sampling)

    before = run("a", PLAIN)
    tokens = _check(run("b", SCORED), expected)
    after = run("c", PLAIN)
    assert [item.token_id for item in before if isinstance(item, TokenOutput)] == tokens
    assert [item.token_id for item in after if isinstance(item, TokenOutput)] == tokens
    assert isinstance(after[0], TokenOutput) and after[0].cached_tokens == 96  # Its pages are stored as ever


def test_a_prompt_that_is_preempted_while_it_is_computed_is_scored_from_its_beginning(
    folder: Path, expected: torch.Tensor
) -> None:
    worker = _worker("p", load_executor(folder), 40, InProcessNetwork(), prefills=False)
    work = Work(Request("r", PROMPT, SCORED))
    worker.perform(worker.role.on_message(Prefill("r", work, "g", False, 0), 0.0))
    assert worker.turn()
    role = worker.role
    assert isinstance(role, DecodeRole)
    worker.perform(role._preempt(role._running["r"]))
    assert [len(item) for item in _sent(worker) if isinstance(item, PromptLogprobs)] == [40]
    while worker.turn():
        pass
    _check(_sent(worker), expected)


def test_output_that_was_emitted_is_computed_again_without_scores_and_with_the_cache(folder: Path) -> None:
    worker = _worker("p", load_executor(folder), 64, InProcessNetwork(), prefills=False)
    first = _alone(worker, "a", SCORED)
    tokens = [item.token_id for item in first if isinstance(item, TokenOutput)]
    work = Work(Request("b", PROMPT, SCORED), tuple(tokens[:2]))
    worker.perform(worker.role.on_message(Prefill("b", work, "g", False, 0), 0.0))
    while worker.turn():
        pass
    again = _sent(worker)
    assert [(item.index, item.token_id) for item in again if isinstance(item, TokenOutput)] == [
        (index, tokens[index]) for index in range(2, 6)
    ]
    assert len(again) == 4
