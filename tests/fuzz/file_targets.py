"""Parsers of files: configurations, traces, models, notes and learned lengths."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from baton.config.parse import parse_config
from baton.deploy import running
from baton.engine.checkpoint import model_id, read_config, read_sampling_defaults
from baton.engine.checkpoint_tensors import checkpoint_targets
from baton.engine.model_config import model_config
from baton.engine.weights import load_weights
from baton.protocol.errors import ConfigError, ModelError
from baton.router.policy.output_length import OutputLength
from baton.simulator.trace import read_trace
from tests.fuzz.inputs import json_bytes, mutated_bytes, mutated_json
from tests.fuzz.model_json import CONFIG, CONFIGS
from tests.fuzz.target import Target

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
    config = rng.choice(CONFIGS)
    if rng.random() < 0.3:
        return mutated_bytes(rng, json_bytes(config))
    return json_bytes(mutated_json(rng, config))


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


FILE_TARGETS = [
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
