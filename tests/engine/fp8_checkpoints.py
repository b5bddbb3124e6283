"""Checkpoints with FP8 weights in each supported form, and the same weights dequantised in float64."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import build_checkpoint

FP8_MAX = 448.0  # Of float8_e4m3fn.
# Rows of heads, columns of an MLP and halves of both lie across the boundaries of blocks.
SHAPE: dict[str, Any] = {"hidden_size": 320, "head_dim": 80, "intermediate_size": 352}
EXPERT_FAMILIES = ("mixtral", "qwen2-moe", "qwen3-moe")


def _groups(**weights: Any) -> dict[str, Any]:
    common = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "group_size": None}
    group = {"targets": ["Linear"], "weights": {**common, **weights}, "input_activations": {"num_bits": 8}}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


@dataclass(frozen=True)
class Form:
    """How a checkpoint stores FP8 weights."""

    quantization_config: dict[str, Any]
    scale: str = "weight_scale"
    block: tuple[int | None, int | None] = (None, None)  # Rows and columns; None for all.
    scale_shape: tuple[int, ...] | None = None  # Instead of that of the grid of blocks.
    scale_dtype: torch.dtype = torch.float32
    beside: dict[str, torch.Tensor] = field(default_factory=dict)  # Other tensors of each module.

    @property
    def method(self) -> str:
        return str(self.quantization_config["quant_method"])

    @property
    def scales(self) -> str:
        rows, columns = self.block
        blocks = "per tensor" if rows is None else "per channel" if columns is None else f"blocks of {rows} × {columns}"
        blocks += ", powers of two (float8_e8m0fnu)" if self.scale_dtype == torch.float8_e8m0fnu else ""
        return f"{blocks}, beside those of activations" if self.beside else blocks


_INPUT = {"input_scale": torch.tensor([0.25])}
FORMS = {  # docs/models.md lists them.
    "fp8, blocks": Form(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]},
        "weight_scale_inv",
        (128, 128),
    ),
    "fp8, per tensor": Form(
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        scale_shape=(),
        beside=_INPUT,
    ),
    "fp8, small blocks": Form(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [64, 96]},
        "weight_scale_inv",
        (64, 96),
    ),
    "fp8, blocks with powers of two": Form(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
        "weight_scale_inv",
        (128, 128),
        scale_dtype=torch.float8_e8m0fnu,
    ),
    "fp8, per tensor, as transformers writes it": Form(
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
        "weight_scale_inv",
        scale_shape=(),
        scale_dtype=torch.bfloat16,
        beside={"activation_scale": torch.tensor(0.25)},
    ),
    "fbgemm, per channel": Form({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, block=(1, None)),
    "modelopt, per tensor": Form(
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, scale_shape=(), beside=_INPUT
    ),
    "compressed-tensors, per tensor": Form(_groups(strategy="tensor"), scale_shape=(1,), beside=_INPUT),
    "compressed-tensors, per channel": Form(_groups(strategy="channel"), block=(1, None), scale_dtype=torch.bfloat16),
    "compressed-tensors, blocks": Form(_groups(strategy="block", block_structure=[128, 128]), block=(128, 128)),
}


def build_pair(path: Path, form: Form, family: str, **overrides: Any) -> tuple[Path, Path]:
    """Two folders: a checkpoint with FP8 weights, and the same one with the dequantised numbers in float32."""
    overrides = {**SHAPE, **({"moe_intermediate_size": 152} if family in EXPERT_FAMILIES else {}), **overrides}
    plain = build_checkpoint(path / "plain", family, scale=2.0, **overrides)
    stored = Path(shutil.copytree(plain, path / "fp8"))
    raw = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps({**raw, "quantization_config": form.quantization_config}))
    tensors = load_file(plain / "model.safetensors")
    quantised: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not name.endswith(("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")):
            quantised[name] = tensor
            continue
        module = name.removesuffix(".weight")
        quantised[name], scales = quantise(tensor, form)
        quantised[f"{module}.{form.scale}"] = scales if form.scale_shape is None else scales.view(form.scale_shape)
        quantised |= {f"{module}.{last}": other.clone() for last, other in form.beside.items()}
        tensors[name] = dequantise(quantised[name], scales, form).float()
    save_file(quantised, stored / "model.safetensors")
    save_file(tensors, plain / "model.safetensors")
    return stored, plain


def _blocks(shape: torch.Size, form: Form) -> list[tuple[int, int, tuple[slice, slice]]]:
    """Row and column of each scale, and the values that it covers."""
    height, width = form.block[0] or shape[0], form.block[1] or shape[1]
    return [
        (top // height, left // width, (slice(top, top + height), slice(left, left + width)))
        for top in range(0, shape[0], height)
        for left in range(0, shape[1], width)
    ]


def quantise(tensor: torch.Tensor, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """The FP8 numbers of a matrix, and their scales."""
    blocks = _blocks(tensor.shape, form)
    scales = torch.empty(blocks[-1][0] + 1, blocks[-1][1] + 1, dtype=form.scale_dtype)
    stored = torch.empty(tensor.shape, dtype=torch.float8_e4m3fn)
    for row, column, block in blocks:
        scales[row, column] = tensor[block].abs().max() / FP8_MAX
        stored[block] = (tensor[block] / scales[row, column].float()).clamp(-FP8_MAX, FP8_MAX).to(stored.dtype)
    return stored, scales


def dequantise(stored: torch.Tensor, scales: torch.Tensor, form: Form) -> torch.Tensor:
    """The numbers of a matrix in float64, where the product of an FP8 number and a scale is exact."""
    values = stored.double()
    for row, column, block in _blocks(stored.shape, form):
        values[block] *= scales[row, column].double()
    return values
