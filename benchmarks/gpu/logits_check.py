"""Checks whole-model logits against transformers with the same weights, in the serving dtype and in float32."""

from __future__ import annotations

import random
from typing import Any

import torch

from baton.engine.executor import DTYPES
from baton.engine.model_config import ModelConfig, model_config
from baton.engine.models.decoder import Decoder
from baton.harness.random_weights import random_weights
from benchmarks.gpu.attention_check import Row, layout_of
from benchmarks.gpu.device import Device, attention_over
from benchmarks.gpu.transformers_model import build_transformers

PROMPT_TOKENS = 200
CHUNKS = (96, 80, 23, 1)  # The last one is a decode step.


@torch.inference_mode()
def logits_errors(device: Device, raw: dict[str, Any], dtype: str, seed: int) -> dict[str, float]:
    """‖ours − theirs‖ / ‖theirs‖, and the errors of both against transformers in float32 with equal weights."""
    config = model_config(raw)
    parameters = random_weights(config, DTYPES[dtype], device.name, seed)
    rng = random.Random(seed)
    tokens = torch.tensor([rng.randrange(config.vocab_size) for _ in range(PROMPT_TOKENS)])
    ours = our_logits(device, config, parameters, tokens)
    theirs = their_logits(device, raw, config, parameters, tokens)
    wide = {name: tensor.float() for name, tensor in parameters.items()}
    exact = their_logits(device, raw, config, wide, tokens)
    our_error, their_error = _error(ours, exact), _error(theirs, exact)
    return {
        "logits_error_to_transformers": _error(ours, theirs),
        "logits_error_to_float32": our_error,
        "logits_error_of_transformers_to_float32": their_error,
        # In float32 both differ by rounding only, so their ratio has no meaning.
        "logits_error_ratio_to_transformers": our_error / their_error if dtype != "float32" else 1.0,
    }


def our_logits(
    device: Device, config: ModelConfig, parameters: dict[str, torch.Tensor], tokens: torch.Tensor
) -> torch.Tensor:
    """Logits of every position, computed in chunks and a decode step over scattered pages, float64."""
    layout = config.page_layout(2 * PROMPT_TOKENS // 16, 16, _name(parameters), "random")
    pages = torch.empty(layout.shape, dtype=parameters["embed"].dtype, device=device.name).normal_()
    backend, model = attention_over(device, pages, config.num_heads), Decoder(config, parameters)
    table = random.Random(1).sample(range(layout.num_pages), -(-PROMPT_TOKENS // 16))
    found, start = [], 0
    for count in CHUNKS:
        used = -(-(start + count) // 16)
        batch = layout_of([Row(start, count, table[:used])], int(count == 1), 16)
        backend.plan(batch)
        chunk = tokens[start : start + count].to(device.name)
        rows = torch.arange(count, device=device.name)
        found.append(model.forward(chunk, batch.positions.to(device.name), rows, backend).cpu())
        start += count
    return torch.cat(found).double()


def their_logits(
    device: Device,
    raw: dict[str, Any],
    config: ModelConfig,
    parameters: dict[str, torch.Tensor],
    tokens: torch.Tensor,
) -> torch.Tensor:
    """transformers' logits of every position, float64."""
    model = build_transformers(raw, config, parameters, device.name)
    model.set_attn_implementation("eager")
    return model(tokens.unsqueeze(0).to(device.name), use_cache=False).logits[0].cpu().double()


def _name(parameters: dict[str, torch.Tensor]) -> str:
    return next(name for name, dtype in DTYPES.items() if dtype is parameters["embed"].dtype)


def _error(found: torch.Tensor, reference: torch.Tensor) -> float:
    error = float((found - reference).norm() / reference.norm())
    return error if error == error else float("inf")
