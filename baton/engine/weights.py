"""Loads weights from safetensors files directly into the model's parameters, one tensor at a time, fused and cast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from baton.engine.checkpoint import tensor_headers, weight_files
from baton.engine.checkpoint_tensors import Target, parameter_shapes, place_tensors
from baton.engine.model_config import ModelConfig
from baton.engine.ranks import ONE_RANK, Ranks
from baton.engine.weight_copier import WeightCopier
from baton.protocol.errors import ModelError

Progress = Callable[[int, int], None]


def load_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: str = "cpu",
    progress: Progress | None = None,
    ranks: Ranks = ONE_RANK,
) -> dict[str, torch.Tensor]:
    """The model's parameters by name, filled from the checkpoint in `folder` without a second copy in memory.

    With several ranks, those of this one (the shapes of `config.slice`): it reads nothing else. `progress` receives
    (bytes done, total bytes). Raises `ModelError` naming a tensor that does not fit the model,
    before memory is allocated.
    """
    files = weight_files(folder)
    places = place_tensors(config, tensor_headers(files), ranks.num_ranks, ranks.rank)
    own = config.slice(ranks.num_ranks, ranks.rank)
    parameters = {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in parameter_shapes(own).items()}
    copier = WeightCopier(torch.device(device))
    total = sum(target.num_values for target in places.values()) * dtype.itemsize
    done = 0
    for parameter, start, part in _parts(files, places):
        place = parameters[parameter][start : start + len(part)]
        copier.copy(part, place)
        done += place.numel() * place.element_size()
        if progress is not None:
            progress(done, total)
    copier.finish()
    vocabulary = config.vocabulary(ranks.num_ranks, ranks.rank)
    for name in ("embed", "head"):
        if name in parameters:
            parameters[name][len(vocabulary) :].zero_()  # The padding of an uneven vocabulary
    return parameters


def _parts(files: list[Path], places: Mapping[str, Target]) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Each part of each tensor, as (parameter, its first row, values): only pages of the file that hold it are read."""
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if name in places:
                        target = places[name]
                        for start, index in target.parts:
                            yield target.parameter, start, file.get_slice(name)[index]
        except SafetensorError as error:
            raise ModelError(f"{path} is not a readable safetensors file: {error}.") from None
