"""Every parser of bytes that come from outside: how to make inputs for it, and how to feed it one."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from google.protobuf.message import DecodeError
from safetensors.torch import save

from baton.config.schema import parse_config
from baton.decode_worker.role import DecodeRole
from baton.deploy import running
from baton.engine.batch import StepBudget
from baton.engine.checkpoint import model_id, read_config, read_sampling_defaults
from baton.engine.checkpoint_tensors import checkpoint_targets
from baton.engine.kv_pages import PagePool
from baton.engine.model_config import model_config
from baton.engine.weights import load_weights
from baton.protocol import codec
from baton.protocol.errors import BatonError, ConfigError, InvalidRequest, ModelError
from baton.protocol.handoff import HandoffNotice, Reservation
from baton.protocol.messages import Cancel, Prefill, Release, Reserve, RouterMessage, SendPages
from baton.protocol.request import Request, SamplingParams
from baton.protocol.v1 import admin_pb2, inference_pb2, worker_pb2
from baton.protocol.worker import RoleName
from baton.router.admin_messages import operation_message, read_spec
from baton.router.policy.output_length import OutputLength
from baton.router.server import InferenceService, ServedModel, _emitted, _parse
from baton.simulator.deliveries import FRAMES
from baton.simulator.stepped_cluster import SteppedCluster
from baton.simulator.token_checker import VOCAB
from baton.simulator.trace import read_trace
from baton.worker.core.state import WorkerState
from tests.fuzz.inputs import fill, json_bytes, mutated_bytes, mutated_json

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "eos_token_id": [1, 2],
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@dataclass(frozen=True, slots=True)
class Target:
    """`feed` may raise what is `allowed` and nothing else."""

    name: str
    make: Callable[[random.Random], bytes]
    feed: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...] = (BatonError,)

    def try_one(self, rng: random.Random) -> bool:
        """Feed one input; False when it was refused. Anything that must not happen raises, with the input as a note."""
        data = self.make(rng)
        try:
            self.feed(data)
        except self.allowed:
            return False
        except Exception as error:
            error.add_note(f"{self.name} was fed {data[:2000]!r}")
            raise
        return True


def _message(kind: Callable[[], Any]) -> Callable[[random.Random], bytes]:
    def make(rng: random.Random) -> bytes:
        data: bytes = fill(rng, kind()).SerializeToString()
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
    return InferenceService(SimpleNamespace(clock=lambda: 0.0), model, seeds=random.Random(0))  # type: ignore[arg-type]


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
    data = message.SerializeToString()
    return mutated_bytes(rng, data) if rng.random() < 0.3 else data


def _generate(data: bytes) -> None:
    message = _parse(inference_pb2.GenerateRequest, data)
    request = _loop().run_until_complete(_service()._request(message, message.tenant, _Context()))  # type: ignore[arg-type]
    emitted = _emitted(message, request, VOCAB)
    cluster = _cluster()
    cluster.core.submit(request, cluster.now, emitted)


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


def _worker_frame(data: bytes) -> None:
    incarnation, batch = codec.decode_to_router(data)
    cluster = _cluster()
    for name, life in (("stranger", incarnation), ("decode-0", incarnation), ("decode-0", "1")):
        FRAMES.check(name, life, batch, cluster.core.state)  # as the driver does it
        cluster.perform(cluster.core.on_frame(name, life, batch, cluster.now))
    cluster.tick()
    for name in ("stranger", "decode-0"):
        cluster.perform(cluster.core.on_worker_lost(name, cluster.now))
    for _ in range(20):
        cluster.step()
    cluster.tick()


def _router_frame_message(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return _message(worker_pb2.ToWorker)(rng)
    request = Request(
        "r0", tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 20))), SamplingParams(max_tokens=9)
    )
    reservation = Reservation("r0/1", "r0", "peer:1", (1, 2, 3), (1, 1, 1), 0, len(request.prompt))
    known: list[RouterMessage] = [
        Prefill(request, (), rng.random() < 0.5, 0),
        Reserve("r0/1", request, (), 0),
        SendPages("r0", reservation),
        Cancel("r0"),
        Release("r0/1"),
    ]
    batch = [rng.choice(known) for _ in range(rng.randint(1, 6))]
    data = codec.encode_to_worker(batch)
    return mutated_bytes(rng, data) if rng.random() < 0.3 else data


def _router_frame(data: bytes) -> None:
    """Bytes that are no message are refused; the router's orders themselves are trusted."""
    codec.decode_to_worker(data)


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
    role.on_message(Reserve("r0/1", Request("r0", tuple(range(9)), SamplingParams(max_tokens=9)), (), 0), 0.0)
    role.on_notice(notice, 0.0)
    role.plan(0.0)
    pool.check_integrity()


CONFIG_TEXT = b"""[model]
path = "x"
dtype = "bfloat16"
[pools]
prefill = 2
decode = 1
[engine]
page_size = 16
num_pages = 100
kv_memory_gib = 1.5
swap_memory_gib = 0.5
write_stall_s = 10.0
[router]
port = 1
lost_after_s = 2.0
[placement.decode]
cpus = 1.0
resources = {a = 1}
labels = {b = "c"}
"""


def _config_text(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return mutated_bytes(rng, CONFIG_TEXT)
    lines = CONFIG_TEXT.splitlines()
    at = rng.randrange(len(lines))
    if b"=" in lines[at]:
        value = rng.choice((b"nan", b"inf", b"-1", b"'x'", b"[]", b"{}", b"true", b"1979-05-27", b"9" * 30, b"1e400"))
        lines[at] = lines[at].split(b"=")[0] + b"= " + value
    rng.shuffle(lines[: rng.choice((0, len(lines)))])
    return b"\n".join(lines)


def _config(data: bytes) -> None:
    parse_config(data.decode(errors="replace"))


@cache
def _made() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuzz-")  # removed when the process ends


def _folder() -> Path:
    return Path(_made().name)


MOONCAKE = b'{"timestamp": 3000, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]}\n' * 3
AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n" + b"2023-11-16 18:15:46.6805900,374,44\n" * 3


def _trace(suffix: str) -> Callable[[bytes], object]:
    def feed(data: bytes) -> object:
        path = _folder() / f"trace{suffix}"
        path.write_bytes(data)
        return read_trace(path)

    return feed


def _mooncake(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return mutated_bytes(rng, MOONCAKE)
    row = {"timestamp": 3000, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]}
    return json_bytes(mutated_json(rng, row))


def _config_json(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return mutated_bytes(rng, json_bytes(CONFIG))
    return json_bytes(mutated_json(rng, CONFIG))


def _read_config(data: bytes) -> None:
    (_folder() / "config.json").write_bytes(data)
    read_config(_folder())


GENERATION = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "max_new_tokens": 9}


def _generation_json(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return mutated_bytes(rng, json_bytes(GENERATION))
    return json_bytes(mutated_json(rng, GENERATION))


def _read_generation(data: bytes) -> None:
    (_folder() / "generation_config.json").write_bytes(data)
    try:
        read_sampling_defaults(_folder())
    finally:
        (_folder() / "generation_config.json").unlink()


@cache
def _safetensors() -> bytes:
    targets = checkpoint_targets(model_config(CONFIG))
    return save({name: torch.zeros(target.shape) for name, target in targets.items()})


def _weights_bytes(rng: random.Random) -> bytes:
    data = _safetensors()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    match rng.randrange(4):
        case 0:
            return rng.choice((2**63, 2**64 - 1, 2**40, 0, 7, length * 2)).to_bytes(8, "little") + data[8:]
        case 1:
            header = mutated_bytes(rng, header)
        case 2:
            header = json_bytes(mutated_json(rng, json.loads(header)))
        case _:
            return data[: rng.randrange(len(data))]
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _weights(data: bytes) -> None:
    folder = _folder() / "weights"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(json_bytes(CONFIG))
    (folder / "model.safetensors").write_bytes(data)
    refused = 0
    for read in (model_id, lambda folder: load_weights(folder, model_config(CONFIG), torch.float32)):
        try:
            read(folder)
        except ModelError:
            refused += 1
    if refused:
        raise ModelError("refused")


def _index_json(rng: random.Random) -> bytes:
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}
    return mutated_bytes(rng, json_bytes(index)) if rng.random() < 0.3 else json_bytes(mutated_json(rng, index))


def _index(data: bytes) -> None:
    folder = _folder() / "index"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(json_bytes(CONFIG))
    (folder / "model.safetensors").write_bytes(_safetensors())
    (folder / "model.safetensors.index.json").write_bytes(data)
    model_id(folder)


PROCESS = {"name": "raylet", "pid": 1, "started_ticks": 2, "boot": "b"}
NOTE = {
    "address": "a:1",
    "workers": ["w"],
    "ray_address": "",
    "ray_folder": "",
    "resolved": {"a": 1},
    "id": "a",
    "state": "up",
    "changed_by": PROCESS,
    "ends_with": None,
    "vital": [PROCESS],
}


def _note_bytes(rng: random.Random) -> bytes:
    return mutated_bytes(rng, json_bytes(NOTE)) if rng.random() < 0.3 else json_bytes(mutated_json(rng, NOTE))


def _note(data: bytes) -> None:
    path = _folder() / "cluster.json"
    path.write_bytes(data)
    found = running.state_file
    running.state_file = lambda folder=None: path
    try:
        cluster = running.running_cluster()
    finally:
        running.state_file = found
    assert cluster is None or all(isinstance(name, str) for name in (cluster.address, *cluster.workers))


@cache
def _learned() -> dict[str, Any]:

    lengths = OutputLength()
    prediction = lengths.predict((1, 2), "tenant", 100, 50)
    lengths.observe(prediction, 20)
    learned: dict[str, Any] = json.loads(lengths.dumps())
    return learned


def _learned_bytes(rng: random.Random) -> bytes:
    return (
        mutated_bytes(rng, json_bytes(_learned())) if rng.random() < 0.3 else json_bytes(mutated_json(rng, _learned()))
    )


def _lengths(data: bytes) -> None:
    lengths = OutputLength.loads(data.decode())
    lengths.predict((1, 2), "tenant", 100, 50).distribution.remaining(3)


TARGETS = [
    Target("generate requests", _generate_message, _generate),
    Target("operations", _message(admin_pb2.StartOperationRequest), _ask),
    Target("worker frames", _message(worker_pb2.ToRouter), _worker_frame),
    Target("router frames", _router_frame_message, _router_frame),
    Target("notices", _notice_message, _notice),
    Target("configurations", _config_text, _config, (ConfigError,)),
    Target("mooncake traces", _mooncake, _trace(".jsonl"), (ConfigError,)),
    Target("azure traces", lambda rng: mutated_bytes(rng, AZURE), _trace(".csv"), (ConfigError,)),
    Target("model configurations", _config_json, _read_config, (ModelError,)),
    Target("generation configurations", _generation_json, _read_generation, (ModelError,)),
    Target("weights", _weights_bytes, _weights, (ModelError,)),
    Target("weight indices", _index_json, _index, (ModelError,)),
    Target("cluster notes", _note_bytes, _note),
    Target("learned lengths", _learned_bytes, _lengths, (ValueError,)),
]
