"""Writes a checkpoint of random weights that a worker can load: config, safetensors in shards, and a tokenizer."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from baton.builtin_model import CHECKPOINT
from baton.engine.checkpoint_tensors import checkpoint_targets
from baton.engine.model_config import ModelConfig
from benchmarks.gpu.sizes import GIB

SHARD_BYTES = 2 * GIB
ROOM_SHARE = 0.9  # Share of a folder's free space that a checkpoint may take.


@contextmanager
def written_checkpoint(
    raw: dict[str, Any], config: ModelConfig, parameters: dict[str, torch.Tensor], scratch: Path | None
) -> Iterator[Path]:
    """A temporary folder with a checkpoint of these weights, in memory if there is room."""
    wanted = sum(tensor.numel() * tensor.element_size() for tensor in parameters.values())
    with tempfile.TemporaryDirectory(prefix="baton-gpu-", dir=roomy(wanted, scratch)) as name:
        folder = Path(name)
        dtype = str(parameters["embed"].dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps({**raw, "model_type": "llama", "torch_dtype": dtype}))
        # A gateway needs a tokenizer. Tokens of random weights have no meaning, so any will do.
        shutil.copy(CHECKPOINT / "tokenizer.json", folder)
        write_shards(folder, config, parameters)
        yield folder


def roomy(num_bytes: int, scratch: Path | None) -> Path:
    """The first folder with room for `num_bytes`; raises `OSError` when there is none."""
    places = [scratch] if scratch is not None else [Path("/dev/shm"), Path(tempfile.gettempdir()), Path.cwd()]
    for place in places:
        if place.is_dir() and os.access(place, os.W_OK) and shutil.disk_usage(place).free * ROOM_SHARE > num_bytes:
            return place
    tried = ", ".join(str(place) for place in places)
    raise OSError(f"The checkpoint takes {num_bytes / GIB:.1f} GiB, more than is free in {tried}: name a --scratch.")


def write_shards(folder: Path, config: ModelConfig, parameters: dict[str, torch.Tensor]) -> None:
    """Write tensors under their names in a checkpoint, a few gigabytes at a time through host memory."""
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    size = 0

    def flush() -> None:
        nonlocal shard, size
        name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        save_file(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
        shard, size = {}, 0

    for name, target in checkpoint_targets(config).items():
        rows = parameters[target.parameter][target.start : target.start + target.shape[0]]
        # Tensors for safetensors must not share memory; those from a GPU are copies already.
        shard[name] = rows.cpu() if rows.is_cuda else rows.clone()
        size += shard[name].numel() * shard[name].element_size()
        if size >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
