"""Checks greedy tokens after prefill, handoff over NIXL and decode in two processes against those of a mixed worker."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any

from baton.builtin_model import CHECKPOINT
from baton.builtin_model.tasks import SMALL_TASKS, Task, look_up
from baton.decode_worker.role import DecodeRole
from baton.engine.batch import StepBudget
from baton.engine.kv_pages import PagePool
from baton.engine.tokenizer import Tokenizer
from baton.harness.hand_driven import HandDriven
from baton.kv_transfer.nixl import NixlTransport
from baton.prefill_worker.role import PrefillRole
from baton.protocol.gateway_messages import StepOutput
from baton.protocol.messages import HandoffCommitted, HandoffEnded, Prefill, Reserve, Reserved, SendPages, Work
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import Endpoint, RoleName
from baton.worker.core.role import Role
from baton.worker.core.state import WorkerState
from benchmarks.gpu.checked_model import CHUNK_TOKENS, MAX_BATCH, NUM_PAGES, PAGE_SIZE, CheckedModel
from benchmarks.gpu.device import Device, prepare
from benchmarks.gpu.peer import POLL_S, Peer, handshake

MAX_TOKENS = 24
LOOK_UPS = 4
ANSWER_S = 60.0
GATEWAY = "gateway-0"  # Gets the tokens.


def tasks(seed: int) -> list[Task]:
    """Tasks of the built-in model's whole curriculum; a look-up takes nearly all of its context."""
    rng = random.Random(seed)
    return [*(look_up(rng, 200) for _ in range(LOOK_UPS)), *(make(rng) for make in SMALL_TASKS)]


def random_prompts(vocab_size: int, seed: int) -> list[list[int]]:
    """Random prompts, from less than a page to several chunks."""
    rng = random.Random(seed)
    return [[rng.randrange(vocab_size) for _ in range(length)] for length in (5, 32, 200, 515, 1000)]


def make_role(role: RoleName, executor: Any, agent: str) -> Role:
    """A role over an empty pool of the executor's pages."""
    config = executor.config
    state = WorkerState(
        agent,
        "checked",
        config.eos_token_ids,
        config.context_tokens,
        StepBudget(CHUNK_TOKENS, MAX_BATCH),
        PagePool(NUM_PAGES, PAGE_SIZE),
    )
    state.streams.attach(GATEWAY, ())
    return PrefillRole(state) if role is RoleName.PREFILL else DecodeRole(state, role)


def decode_worker(pipe: Connection, device_name: str, checked: CheckedModel) -> None:
    """The other process: a decode worker that receives orders from a pipe.

    It handles a router's message, connects to an endpoint, and returns its messages of a given type.
    """
    executor = checked.executor(prepare(device_name))
    transport = NixlTransport(executor.pages, executor.layout, "decode:1")
    worker = HandDriven(make_role(RoleName.DECODE, executor, "decode:1"), executor, transport)
    pipe.send(transport.endpoint)
    while True:
        if pipe.poll(POLL_S):
            order = pipe.recv()
            if isinstance(order, Endpoint):
                transport.connect(order)
                pipe.send("connected")
            elif isinstance(order, type):
                pipe.send(worker.received(order))
            else:
                worker.perform(worker.role.on_message(order, time.monotonic()))
                pipe.send(None)
        worker.turn()


def compare_built_in(device: Device, dtype: str, seed: int) -> dict[str, float]:
    """The share of equal answers with and without a handoff, and of correct look-ups, with the built-in model."""
    tokenizer, asked = Tokenizer(CHECKPOINT), tasks(seed)
    prompts = [tokenizer.encode(task.prompt) for task in asked]
    mixed, handed_over = both_ways(device, CheckedModel(dtype), prompts)
    look_ups = zip(asked[:LOOK_UPS], handed_over[:LOOK_UPS], strict=True)
    right = sum(task.accepts(tokenizer.decode(tokens)) for task, tokens in look_ups)
    return {"handoff_tokens_equal": equal_share(mixed, handed_over), "built_in_look_ups_right": right / LOOK_UPS}


def compare_random(device: Device, dtype: str, raw: dict[str, Any], seed: int) -> dict[str, float]:
    """The share of equal answers with random weights, in the dtype and with the heads that are measured later."""
    prompts = random_prompts(raw["vocab_size"], seed)
    return {"handoff_tokens_equal_random_weights": equal_share(*both_ways(device, CheckedModel(dtype, raw), prompts))}


def equal_share(left: list[list[int]], right: list[list[int]]) -> float:
    """The share of equal answers."""
    return sum(one == other for one, other in zip(left, right, strict=True)) / len(left)


def both_ways(
    device: Device, checked: CheckedModel, prompts: list[list[int]]
) -> tuple[list[list[int]], list[list[int]]]:
    """(tokens of one mixed worker, tokens after a handoff).

    Requests run one at a time, so that both sides run the same batches and differ only in the handoff.
    """
    sampling = SamplingParams(max_tokens=MAX_TOKENS)
    made = [Request(f"r{index}", tuple(prompt), sampling) for index, prompt in enumerate(prompts)]
    with Peer(decode_worker, (device.name, checked)) as peer:
        executor = checked.executor(device)
        transport = NixlTransport(executor.pages, executor.layout, "prefill:1")
        alone = HandDriven(make_role(RoleName.MIXED, executor, "mixed:1"), executor, transport)
        mixed = [answer_alone(alone, request) for request in made]
        handshake(transport, peer, peer.answer(), device)
        source = HandDriven(make_role(RoleName.PREFILL, executor, "prefill:1"), executor, transport)
        handed_over = [answer_handed_over(source, peer, request) for request in made]
        transport.close()
    return mixed, handed_over


def answer_alone(worker: HandDriven, request: Request) -> list[int]:
    """Tokens of a request on a mixed worker; raises `TimeoutError`."""
    worker.perform(worker.role.on_message(_prefill(request, False), 0.0))
    deadline = time.monotonic() + ANSWER_S
    while worker.turn():
        if time.monotonic() > deadline:
            raise TimeoutError(f"The mixed worker has not answered within {ANSWER_S:g} s.")
    return _tokens(worker.received(StepOutput))


def _prefill(request: Request, disaggregated: bool) -> Prefill:
    return Prefill(request.request_id, Work(request), GATEWAY, disaggregated, 0)


def answer_handed_over(source: HandDriven, peer: Peer, request: Request) -> list[int]:
    """Tokens of a request with a handoff, as the router drives it; raises `RuntimeError` when the handoff fails."""
    source.perform(source.role.on_message(_prefill(request, True), 0.0))
    peer.ask(Reserve(f"{request.request_id}/1", request.request_id, Work(request), GATEWAY, 0))
    (reserved,) = peer.ask(Reserved)
    source.perform(source.role.on_message(SendPages(request.request_id, reserved.reservation), 0.0))
    ended = source.until(HandoffEnded)
    outputs = source.received(StepOutput)
    if _finished(outputs):
        return _tokens(outputs)  # The first token was the last one, so there was no handoff.
    if ended.reason:
        raise RuntimeError(f"The handoff failed: {ended.reason}.")
    deadline = time.monotonic() + 60
    while not _finished(outputs):
        outputs += peer.ask(StepOutput)
        if time.monotonic() > deadline:
            raise TimeoutError("The decode worker did not finish a request within 60 s.")
    if not peer.ask(HandoffCommitted):
        raise RuntimeError("The decode worker answered without a handoff.")
    return _tokens(outputs)


def _tokens(outputs: Iterable[StepOutput]) -> list[int]:
    return [token.token_id for output in outputs for token in output.tokens]


def _finished(outputs: Iterable[StepOutput]) -> bool:
    return any(token.finish for output in outputs for token in output.tokens)
