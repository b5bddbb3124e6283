"""Checkpoints with FP8 weights: which forms are read, and the scale of each weight. Pure.

A weight is its stored number (float8_e4m3fn) times the scale of its block, in float32. A block is the whole matrix
(one scale per tensor), a row (one per channel), or so many rows and columns. Weights are dequantised when they are
loaded. Activations stay in the compute dtype, so their scales are not read. The types of the stored tensors say which
are quantised, so lists of modules that are not quantised are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baton.protocol.errors import ModelError

FP8 = "F8_E4M3"  # As named in a safetensors header.
_SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")
# The last parts of the names of tensors beside a weight. Both kinds of scales of weights are factors.
_SCALES = ("weight_scale_inv", "weight_scale")
_IGNORED = (
    "input_scale",
    "output_scale",
    "input_scale_ub",
    "activation_scale",
)  # Of activations and of a quantised KV cache.


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """The header of one tensor in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fp8:
    """The form of a checkpoint's FP8 weights."""

    block: tuple[int, int] | None  # The rows and columns with a common scale; None for scales per tensor or row.


@dataclass(frozen=True, slots=True)
class Scale:
    """The scales of one matrix: the tensor with them, and the rows and columns of the matrix that each covers."""

    tensor: str
    grid: tuple[int, int]  # Rows and columns of scales.
    block: tuple[int, int]


def read_fp8(raw: Mapping[str, Any]) -> Fp8 | None:
    """The FP8 form of a config.json; None when the checkpoint is not quantised.

    Raises `ModelError` naming any other kind of quantisation.
    """
    quantisation = raw.get("quantization_config") or raw.get("compression_config") or raw.get("quantization")
    if not quantisation:
        return None
    form = _FORMS.get(quantisation.get("quant_method"))
    found = None if form is None else form(quantisation)
    if found is None:
        raise ModelError(
            f"The checkpoint is quantised ({_kind_of(quantisation)}), which is not supported; use one in "
            "float32, bfloat16 or float16, or in FP8 with scales per tensor, channel or block."
        )
    return found


def _of_fp8(quantisation: Mapping[str, Any]) -> Fp8 | None:
    """The form that transformers and vLLM write, with blocks (Qwen3, DeepSeek) or without (Llama)."""
    if quantisation.get("fmt") not in (None, "e4m3"):
        return None
    return _with_block(quantisation.get("weight_block_size"))


def _of_compressed_tensors(quantisation: Mapping[str, Any]) -> Fp8 | None:
    """The form "float-quantized", whose groups must have one size of block."""
    groups = list((quantisation.get("config_groups") or {}).values())
    sparsity = (quantisation.get("sparsity_config") or {}).get("format")
    formats = {quantisation.get("format"), *(group.get("format") or "float-quantized" for group in groups)}
    if formats != {"float-quantized"} or sparsity not in (None, "dense") or quantisation.get("transform_config"):
        return None
    forms = {_of_group(group.get("weights") or {}) for group in groups}
    return forms.pop() if len(forms) == 1 else None


def _of_group(weights: Mapping[str, Any]) -> Fp8 | None:
    strategy = weights.get("strategy") or "tensor"
    numbers = (weights.get("num_bits"), weights.get("type"), weights.get("symmetric", True))
    if strategy not in ("tensor", "channel", "block") or weights.get("group_size") or numbers != (8, "float", True):
        return None
    if strategy != "block":
        return Fp8(None)
    return _with_block(weights["block_structure"]) if weights.get("block_structure") else None


def _with_block(block: Any) -> Fp8:
    if block is None:
        return Fp8(None)
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise ModelError(f"config.json gives {block!r} for the block of FP8 weights: it must be two positive numbers.")
    return Fp8((block[0], block[1]))


def _of_fbgemm(_: Mapping[str, Any]) -> Fp8:
    """The form of Llama 3.1 405B: one scale per channel."""
    return Fp8(None)


def _of_modelopt(quantisation: Mapping[str, Any]) -> Fp8 | None:
    """The form of NVIDIA's checkpoints: one scale per tensor."""
    return Fp8(None) if quantisation.get("quant_algo") == "FP8" else None


_FORMS = {
    "compressed-tensors": _of_compressed_tensors,
    "fbgemm_fp8": _of_fbgemm,
    "fp8": _of_fp8,
    "modelopt": _of_modelopt,
}


def _kind_of(quantisation: Mapping[str, Any]) -> str:
    """Method and bits of a quantised checkpoint, as far as its configuration names them."""
    words = [str(quantisation[key]) for key in ("quant_method", "quant_algo", "format", "fmt") if quantisation.get(key)]
    groups = quantisation.get("config_groups") or {}
    weights = [group.get("weights") or {} for group in groups.values()]
    bits = [quantisation.get("bits"), *(group_weights.get("num_bits") for group_weights in weights)]
    bits += [number for number in (4, 8) if quantisation.get(f"load_in_{number}bit")]
    words += [f"{number} bits" for number in dict.fromkeys(bits) if number]
    strategies = (group_weights.get("strategy") for group_weights in weights)
    words += [f"scales per {strategy}" for strategy in dict.fromkeys(strategies) if strategy]
    if (sparsity := (quantisation.get("sparsity_config") or {}).get("format")) not in (None, "dense"):
        words.append(f"{sparsity} sparsity")
    if quantisation.get("transform_config"):
        words.append("transformed")
    return ", ".join(words) or "of a kind that config.json does not name"


def belongs_to_fp8(name: str, headers: Mapping[str, TensorHeader]) -> bool:
    """Whether a tensor is a scale beside a weight of an 8-bit floating point type."""
    module, _, last = name.rpartition(".")
    weight = headers.get(f"{module}.weight") if last in _SCALES or last in _IGNORED else None
    return weight is not None and weight.dtype.startswith("F8_")


def scale_of(fp8: Fp8, name: str, headers: Mapping[str, TensorHeader]) -> Scale:
    """The scale of the FP8 weight `name`; raises `ModelError` when the checkpoint has none that fits."""
    shape = headers[name].shape
    found = [scale for last in _SCALES if (scale := f"{name.removesuffix('.weight')}.{last}") in headers]
    if len(shape) != 2 or not name.endswith(".weight"):
        raise ModelError(f"The tensor {name} is of type {FP8}; only matrices can be.")
    if len(found) != 1:
        raise ModelError(f"The tensor {name} is of type {FP8} and has {len(found)} tensors of scales instead of one.")
    header = headers[found[0]]
    if header.dtype not in _SCALE_DTYPES:
        raise ModelError(f"The scales {found[0]} are of type {header.dtype}; supported are {', '.join(_SCALE_DTYPES)}.")
    rows, columns = shape
    if fp8.block is not None:
        grid = (-(-rows // fp8.block[0]), -(-columns // fp8.block[1]))
        if header.shape != grid:
            raise ModelError(f"The scales {found[0]} have shape {list(header.shape)} instead of {list(grid)}.")
        return Scale(found[0], grid, fp8.block)
    if header.shape in ((), (1,), (1, 1)):
        return Scale(found[0], (1, 1), shape)
    if header.shape in ((rows,), (rows, 1)):
        return Scale(found[0], (rows, 1), (1, columns))
    raise ModelError(f"The scales {found[0]} have shape {list(header.shape)} instead of [1] or [{rows}, 1].")
