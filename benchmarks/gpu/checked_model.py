"""Executors of the small models whose tokens are compared after a handoff."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from baton.builtin_model import CHECKPOINT
from baton.engine.checkpoint import read_config
from baton.engine.executor import DTYPES
from baton.engine.weights import load_weights
from benchmarks.gpu.device import Device, build_executor, build_model

NUM_PAGES, PAGE_SIZE, CHUNK_TOKENS, MAX_BATCH = 256, 16, 256, 4


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """The model that both sides serve: random weights in the shape `raw`, or the built-in model."""

    dtype: str
    raw: dict[str, Any] | None = None

    def executor(self, device: Device) -> Any:
        """An executor of this model on a device."""
        if self.raw is not None:
            config, parameters = build_model(self.raw, self.dtype, device, seed=0)
        else:
            config = read_config(CHECKPOINT)
            parameters = load_weights(CHECKPOINT, config, DTYPES[self.dtype], device.name)
        layout = config.page_layout(NUM_PAGES, PAGE_SIZE, self.dtype, "checked")
        return build_executor(device, config, parameters, layout, MAX_BATCH, CHUNK_TOKENS)
