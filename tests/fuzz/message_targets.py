"""Parsers of messages: of clients, operators, workers, gateways, the router and peers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from google.protobuf.message import DecodeError

from baton.decode_worker.role import DecodeRole
from baton.engine.batch import StepBudget
from baton.engine.kv_pages import PagePool
from baton.engine.model_config import model_config
from baton.gateway.grpc_service import InferenceService, _parse
from baton.gateway.intake import Intake, check_emitted
from baton.gateway.served_model import ServedModel
from baton.protocol import codec
from baton.protocol.conversion import to_message
from baton.protocol.errors import InvalidRequest
from baton.protocol.handoff import HandoffNotice, Reservation
from baton.protocol.messages import Cancel, Prefill, Release, Reserve, RouterMessage, SendPages, Work
from baton.protocol.request import Request, SamplingParams
from baton.protocol.v1 import admin_pb2, inference_pb2, worker_pb2
from baton.protocol.worker import RoleName
from baton.router.admin_messages import operation_message, read_spec
from baton.simulator.deliveries import FRAMES
from baton.simulator.stepped_cluster import SteppedCluster
from baton.simulator.token_checker import VOCAB
from baton.worker.core.state import WorkerState
from tests.fuzz.inputs import fill, mutated_bytes
from tests.fuzz.model_json import CONFIG
from tests.fuzz.target import Target


def _message(kind: Callable[[], Any]) -> Callable[[random.Random], bytes]:
    def make(rng: random.Random) -> bytes:
        data: bytes = fill(rng, kind()).SerializeToString(deterministic=True)
        return mutated_bytes(rng, data) if rng.random() < 0.3 else data

    return make


def _cluster() -> SteppedCluster:
    """A small cluster in the middle of its work."""
    cluster = SteppedCluster(random.Random(3), ends=False)
    cluster.core.requests.strict = False  # as in production: no honest worker sends what is tried here
    for name in ("prefill-0", "decode-0", "decode-1"):
        cluster.add(name, RoleName(name.split("-")[0]))
    for _ in range(60):
        cluster.step()
    for index in range(2):
        cluster.submit(f"r{index}", [index] * 9, 20)
    for _ in range(40):
        cluster.step()
    return cluster


@dataclass(eq=False)
class _Context:
    """What gRPC tells of a call."""

    def time_remaining(self) -> float | None:
        return None


class _Tokenizer:
    max_token_bytes = 4

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [byte % VOCAB for byte in text.encode()]

    def special_ids(self, texts: Iterable[str]) -> tuple[int, ...]:
        return (2,) if "<eos>" in texts else ()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def _service() -> InferenceService:
    model = ServedModel("m", "m", model_config(CONFIG), _Tokenizer(), "float32", 64)  # type: ignore[arg-type]
    return InferenceService(SimpleNamespace(clock=lambda: 0.0), Intake(model, seeds=random.Random(0)))  # type: ignore[arg-type]


def _generate_message(rng: random.Random) -> bytes:
    message = inference_pb2.GenerateRequest(request_id="r7")
    if rng.random() < 0.5:
        message.token_ids.ids.extend([1, 2, 3])
        message.sampling.max_tokens = 5
        if rng.random() < 0.5:
            fill(rng, message.sampling)
        if rng.random() < 0.3:
            message.resume_from = rng.choice([0, 1, 2, -1, 9])
            message.emitted.extend(rng.choice([[], [1], [1, 2], [-1, 200]]))
        if rng.random() < 0.3:
            fill(rng, message.objectives)
    else:
        fill(rng, message)
    data = message.SerializeToString(deterministic=True)
    return mutated_bytes(rng, data) if rng.random() < 0.3 else data


def _generate(data: bytes) -> None:
    message = _parse(inference_pb2.GenerateRequest, data)
    request = _loop().run_until_complete(_service()._request(message, message.tenant, _Context()))  # type: ignore[arg-type]
    emitted = tuple(message.emitted)
    check_emitted(emitted, message.resume_from, request.sampling.max_tokens, VOCAB)
    cluster = _cluster()
    gateway = cluster.gateways["gateway-0"]
    cluster.perform_at(gateway, gateway.session.open(request, cluster.now, emitted, message.resume_from))
    cluster.exchange(gateway)


def _ask(data: bytes) -> None:
    try:
        message = admin_pb2.StartOperationRequest.FromString(data)
    except DecodeError as error:  # gRPC parses these itself
        raise InvalidRequest(str(error)) from None
    cluster = _cluster()
    ask = read_spec(message)
    operation, commands = cluster.core.start_operation(message.operation_id, ask, message.dry_run, cluster.now)
    cluster.perform(commands)
    operation_message(operation, cluster.now)
    cluster.settle()
    cluster.check_nothing_is_held()


def _frame_message(kinds: Iterable[type]) -> Callable[[random.Random], bytes]:
    """Frames of messages of these kinds, with any values."""
    names = sorted(codec.kind_name(kind) for kind in kinds)

    def make(rng: random.Random) -> bytes:
        frame = worker_pb2.Frame(incarnation=rng.choice(("1", "stranger", "")))
        for _ in range(rng.randint(1, 3)):
            message = getattr(frame.messages.add(), rng.choice(names))
            message.SetInParent()
            fill(rng, message)
        data = frame.SerializeToString(deterministic=True)
        return mutated_bytes(rng, data) if rng.random() < 0.3 else data

    return make


def _frame_to_router(data: bytes) -> None:
    incarnation, batch = codec.decode_frame(data, codec.TO_ROUTER)
    cluster = _cluster()
    core, gateway = cluster.core, cluster.gateways["gateway-0"]
    known = (("decode-0", "1"), (gateway.name, gateway.incarnation))
    for name, life in (("stranger", incarnation), ("decode-0", incarnation), (gateway.name, incarnation), *known):
        try:
            FRAMES.check(name, life, batch, core.state, core.gateways.by_name)  # As the driver does it
        except InvalidRequest:
            continue  # One sender's frame may be another's offence
        cluster.perform(core.on_frame(name, life, batch, cluster.now))
    cluster.tick()
    for name in ("stranger", "decode-0"):
        cluster.perform(core.on_worker_lost(name, cluster.now))
    cluster.perform(core.on_gateway_lost(gateway.name, cluster.now))
    for _ in range(20):
        cluster.step()
    cluster.tick()


def _frame_to_gateway(data: bytes) -> None:
    incarnation, batch = codec.decode_frame(data, codec.FROM_WORKER_TO_GATEWAY)
    cluster = _cluster()
    gateway = cluster.gateways["gateway-0"]
    for name in ("stranger", "decode-0"):
        commands = gateway.session.on_worker_messages(name, incarnation, batch, cluster.now)
        cluster.perform_at(gateway, commands)
    cluster.exchange(gateway)
    cluster.perform_at(gateway, gateway.session.tick(cluster.now))


def _router_frame_message(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return _frame_message(codec.FROM_ROUTER_TO_WORKER)(rng)
    reservation = Reservation("r0/1", "r0", "peer:1", (1, 2, 3), (1, 1, 1), 0, 9)
    known: list[RouterMessage] = [
        Prefill("r0", _work_message(rng), "gateway-0", rng.random() < 0.5, 0),
        Reserve("r0/1", "r0", _work_message(rng), "gateway-0", 0),
        SendPages("r0", reservation),
        Cancel("r0"),
        Release("r0/1"),
    ]
    data = codec.encode_frame([rng.choice(known) for _ in range(rng.randint(1, 6))])
    return mutated_bytes(rng, data) if rng.random() < 0.3 else data


def _router_frame(data: bytes) -> None:
    """Bytes that are no message are refused; the router's orders themselves are trusted."""
    for message in codec.decode_frame(data, codec.FROM_ROUTER_TO_WORKER)[1]:
        if isinstance(message, Prefill | Reserve):
            codec.work_of(message.work)


def _work_message(rng: random.Random) -> bytes:
    """Work as a gateway encodes it, or anything like it."""
    prompt = tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 20)))
    if rng.random() < 0.5:
        return _message(worker_pb2.Work)(rng)
    return to_message(Work(Request("r0", prompt, SamplingParams(max_tokens=9)))).SerializeToString()


def _notice_message(rng: random.Random) -> bytes:
    notice = HandoffNotice(
        rng.choice(("r0/1", "r0/2", "")),
        "r0",
        rng.choice((0, 5, 9, 10, 11, 400, 2**31 - 1)),
        tuple([1] * rng.choice((0, 1, 2, 50))),
        rng.choice(((1, 1, 1), (1, 1), ())),
    )
    data = codec.encode_notice(notice)
    return mutated_bytes(rng, data) if rng.random() < 0.3 else data


def _notice(data: bytes) -> None:
    notice = codec.decode_notice(data)
    pool = PagePool(8, 4)
    state = WorkerState("w:1", "m", frozenset(), 64, StepBudget(8, 8), pool)
    role = DecodeRole(state)
    work = Work(Request("r0", tuple(range(9)), SamplingParams(max_tokens=9)))
    role.on_message(Reserve("r0/1", "r0", work, "gateway-0", 0), 0.0)
    role.on_notice(notice, 0.0)
    role.plan(0.0)
    pool.check_integrity()


MESSAGE_TARGETS = [
    Target("generate requests", _generate_message, _generate),
    Target("operations", _message(admin_pb2.StartOperationRequest), _ask),
    Target("frames to the router", _frame_message(codec.TO_ROUTER), _frame_to_router),
    Target("frames to a gateway", _frame_message(codec.FROM_WORKER_TO_GATEWAY), _frame_to_gateway),
    Target("frames to a worker", _router_frame_message, _router_frame),
    Target("notices", _notice_message, _notice),
]
