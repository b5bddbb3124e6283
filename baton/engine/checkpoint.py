"""Finds a model's files, and identifies the model."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from baton.engine.checkpoint_tensors import place_tensors
from baton.engine.fp8 import TensorHeader
from baton.engine.model_config import ModelConfig, model_config
from baton.protocol.errors import ModelError
from baton.protocol.sampling import SamplingDefaults, model_defaults

_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"
# The files of a hub repository except weights. Weights are fetched by name, because a repository may hold them twice
# (Mistral's consolidated*.safetensors).
DESCRIPTION = ["*.json", "*.jinja", "tokenizer.model"]
_SAMPLE_BYTES = 4096  # Bytes of each tensor that enter `model_id`.
# Errors of reading a malformed file: not JSON, not text, a wrong type, a missing key, brackets nested too deep.
_WRONG = (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)


def resolve_model(model: str) -> Path:
    """The folder of a checkpoint: `model` itself if it is a folder, else a download from the Hugging Face hub.

    Raises `ModelError` when neither exists.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} has no config.json; give the folder of a Hugging Face checkpoint.")
        return path
    if path.is_absolute() or model.startswith("."):
        raise ModelError(f"The folder {path} does not exist.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, allow_patterns=DESCRIPTION))
        read_config(folder)  # An unsupported model is refused before its weights are fetched.
        return Path(snapshot_download(model, revision=folder.name, allow_patterns=weight_names(folder)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"The model {model} is not a folder here and could not be fetched from the hub: {reason}"
        ) from None


def read_config(folder: Path) -> ModelConfig:
    """The configuration in a checkpoint's folder; raises `ModelError` when it is malformed or not supported."""
    generation = folder / "generation_config.json"
    try:
        raw = json.loads((folder / "config.json").read_text())
        return model_config(raw, json.loads(generation.read_text()) if generation.is_file() else None)
    except _WRONG as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}.") from None


def read_sampling_defaults(folder: Path) -> SamplingDefaults:
    """Sampling defaults from the checkpoint's generation_config.json, empty without that file.

    Raises `ModelError` when the file is malformed.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        return model_defaults(json.loads(path.read_text()))
    except _WRONG as error:
        raise ModelError(f"{path} cannot be read: {error}.") from None


def weight_names(folder: Path) -> list[str]:
    """Names of a checkpoint's safetensors files, sharded or not, in a fixed order; the files need not exist.

    Raises `ModelError` when the index of shards is malformed.
    """
    index = folder / _INDEX
    if not index.is_file():
        return [_WHOLE]
    try:
        return sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except _WRONG as error:
        raise ModelError(f"{index} is not a readable index of shards: {error!r}.") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint; raises `ModelError` when one is missing."""
    names = weight_names(folder)
    try:
        missing = [name for name in names if not (folder / name).is_file()]
    except _WRONG as error:
        raise ModelError(f"{folder / _INDEX} is not a readable index of shards: {error!r}.") from None
    if missing == [_WHOLE]:
        raise ModelError(f"{folder} has no {_WHOLE}; only safetensors checkpoints are read.")
    if missing:
        raise ModelError(f"The shard {missing[0]} of {folder} is missing.")
    return [folder / name for name in names]


def tensor_headers(files: list[Path]) -> dict[str, TensorHeader]:
    """Type and shape of every tensor in these files; raises `ModelError` for a broken header or a duplicate name."""
    headers: dict[str, TensorHeader] = {}
    for path in files:
        with path.open("rb") as file:
            entries, _ = _header(path, file)
        for name, entry in entries.items():
            if name in headers:
                raise ModelError(f"The tensor {name} is in the checkpoint twice, the second time in {path}.")
            try:
                headers[name] = TensorHeader(str(entry["dtype"]), tuple(entry["shape"]))
            except _WRONG:
                raise ModelError(f"{path} is not a readable safetensors file: its header is broken.") from None
    return headers


def check_weights(folder: Path, config: ModelConfig) -> None:
    """Raise `ModelError` unless the checkpoint has the tensors of its configuration; reads headers only."""
    place_tensors(config, tensor_headers(weight_files(folder)))


def model_id(folder: Path) -> str:
    """A short fingerprint of config and weights: only workers with equal ones exchange KV.

    Reads the config and the beginning of every tensor, not every byte.
    """
    digest = blake2b((folder / "config.json").read_bytes(), digest_size=8)
    for path in weight_files(folder):
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        with path.open("rb") as file:
            tensors, header = _header(path, file)
            digest.update(header)
            try:
                for offset in sorted(entry["data_offsets"][0] for entry in tensors.values()):
                    file.seek(8 + len(header) + offset)
                    digest.update(file.read(_SAMPLE_BYTES))
            except _WRONG:
                raise ModelError(f"{path} is not a readable safetensors file: its header is broken.") from None
    return digest.hexdigest()


def _header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file: its tensors by name, and its raw bytes."""
    try:
        header = file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size))
        return {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}, header
    except _WRONG:
        raise ModelError(f"{path} is not a readable safetensors file: its header is broken.") from None
