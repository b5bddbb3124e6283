"""Random parameters of a model's shapes, for tests and benchmarks that need no checkpoint."""

from __future__ import annotations

import torch

from baton.engine.checkpoint_tensors import parameter_shapes
from baton.engine.model_config import ModelConfig


def random_weights(config: ModelConfig, dtype: torch.dtype, device: str, seed: int) -> dict[str, torch.Tensor]:
    """As transformers initialises them: norms are one, everything else is normal with a deviation of 0.02."""
    generator = torch.Generator(device=device).manual_seed(seed)
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        if name.endswith("norm"):
            parameters[name] = torch.ones(shape, dtype=dtype, device=device)
        else:
            values = torch.empty(shape, dtype=dtype, device=device)
            parameters[name] = values.normal_(0.0, 0.02, generator=generator)
    return parameters
