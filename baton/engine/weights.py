"""Loads weights from safetensors files directly into the model's parameters, one tensor at a time, fused and cast."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from baton.engine.checkpoint import tensor_headers, weight_files
from baton.engine.checkpoint_tensors import parameter_shapes, place_tensors
from baton.engine.model_config import ModelConfig
from baton.engine.weight_copier import WeightCopier
from baton.protocol.errors import ModelError

Progress = Callable[[int, int], None]


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: str = "cpu", progress: Progress | None = None
) -> dict[str, torch.Tensor]:
    """The model's parameters by name, filled from the checkpoint in `folder` without a second copy in memory.

    `progress` receives (bytes done, total bytes). Raises `ModelError` naming a tensor that does not fit the model,
    before memory is allocated.
    """
    files = weight_files(folder)
    places = place_tensors(config, tensor_headers(files))
    parameters = {
        name: torch.empty(shape, dtype=dtype, device=device) for name, shape in parameter_shapes(config).items()
    }
    copier = WeightCopier(torch.device(device))
    total = sum(tensor.numel() * tensor.element_size() for tensor in parameters.values())
    done = 0
    for name, tensor in _tensors(files, places):
        target = places[name]
        place = parameters[target.parameter][target.start : target.start + target.shape[0]]
        copier.copy(tensor, place)
        done += place.numel() * place.element_size()
        if progress is not None:
            progress(done, total)
    copier.finish()
    return parameters


def _tensors(files: list[Path], wanted: Container[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if name in wanted:
                        yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"{path} is not a readable safetensors file: {error}.") from None
