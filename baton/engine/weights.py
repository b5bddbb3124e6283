"""Loads weights from safetensors files directly into the model's parameters, one tensor at a time, fused and cast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from baton.engine.checkpoint import tensor_headers, weight_files
from baton.engine.checkpoint_tensors import Target, parameter_shapes, place_tensors
from baton.engine.fp8 import Scale
from baton.engine.model_config import ModelConfig
from baton.engine.ranks import ONE_RANK, Ranks
from baton.engine.weight_copier import WeightCopier
from baton.protocol.errors import ModelError

Progress = Callable[[int, int], None]
BAND_VALUES = 1 << 20  # Of an FP8 matrix, dequantised at once.


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
    """Each part of each tensor, as (parameter, its first row, values): only pages of the file that hold it are read.

    Parts of FP8 matrices are cut into bands of rows, which are dequantised to float32.
    """
    scales = dict(_scales(files, {target.scale.tensor for target in places.values() if target.scale is not None}))
    for path in files:
        with _opened(path) as file:
            for name in [name for name in file.keys() if name in places]:  # noqa: SIM118 - not a dict
                target, scale = places[name], places[name].scale
                for start, index in target.parts:
                    part = file.get_slice(name)[index]
                    if scale is None:
                        yield target.parameter, start, part
                        continue
                    for row, band in _dequantised(part, index, scale, scales[scale.tensor]):
                        yield target.parameter, start + row, band


def _scales(files: list[Path], names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The scales of FP8 weights; a weight and its scales may be in different shards."""
    for path in files if names else ():
        with _opened(path) as file:
            for name in names.intersection(file.keys()):
                yield name, file.get_tensor(name).float()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; raises `ModelError` when it cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelError(f"{path} is not a readable safetensors file: {error}.") from None


def _dequantised(
    part: torch.Tensor, index: tuple[slice, ...], scale: Scale, scales: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor]]:
    """The float32 values of a part of an FP8 matrix, in bands of rows, as (first row of the part, values)."""
    first_row, first_column = index[0].start, index[1].start if len(index) > 1 else 0
    rows, columns = (
        torch.arange(first, first + length) // block
        for first, length, block in zip((first_row, first_column), part.shape, scale.block, strict=True)
    )
    scales = scales.view(scale.grid)
    if scale.grid[1] > 1:
        scales = scales[:, columns]
    step = max(1, BAND_VALUES // part.shape[1])
    for start in range(0, len(part), step):
        yield start, part[start : start + step].float().mul_(scales[rows[start : start + step]])
