"""Fused layers against torch's own operations on the CPU, in float64 or float32."""

from __future__ import annotations

import pytest
import torch

from baton.engine.model_config import model_config
from baton.engine.models.experts import grouped_linear
from baton.engine.models.layers import add_linear_norm, fused, linear, rms_norm, silu_and_mul
from baton.engine.models.rope import FusedRotation, RopeTable
from baton.engine.ranks import ONE_RANK
from tests.engine.test_cuda_executor_on_cpu import RAW

DTYPES = [torch.bfloat16, torch.float16]


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _near(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((got.cpu().double() - expected.double()).norm() / expected.double().norm() < 1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(device: torch.device, dtype: torch.dtype) -> None:
    x, weight = _random(5, 1024).to(dtype), _random(1024).to(dtype)
    assert fused(x.to(device))
    assert _near(rms_norm(x.to(device), weight.to(device), 1e-5), rms_norm(x.float(), weight.float(), 1e-5))
    heads = _random(5, 12, 128).to(dtype)
    part, head_weight = heads[:, 2:9], _random(128).to(dtype)
    got = rms_norm(heads.to(device)[:, 2:9], head_weight.to(device), 1e-5)
    assert _near(got, rms_norm(part.float(), head_weight.float(), 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_residual_is_added_in_place_and_normed(device: torch.device, dtype: torch.dtype) -> None:
    residual, x, matrix, norm = (_random(*shape).to(dtype) for shape in ((6, 256), (6, 512), (256, 512), (256,)))
    there = residual.to(device)
    got = add_linear_norm(there, x.to(device), matrix.to(device), norm.to(device), 1e-5, ONE_RANK)
    total = residual.double() + linear(x.double(), matrix.double())
    assert _near(there, total)
    assert _near(got, rms_norm(total.float(), norm.float(), 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gate(device: torch.device, dtype: torch.dtype) -> None:
    gate_up = _random(7, 2 * 384).to(dtype)
    assert _near(silu_and_mul(gate_up.to(device)), silu_and_mul(gate_up.float()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_of_rows_times_their_matrices(device: torch.device, dtype: torch.dtype) -> None:
    x, weights = _random(40, 256).to(dtype), _random(6, 128, 256).to(dtype)
    ends = torch.tensor([0, 7, 7, 30, 39, 40], dtype=torch.int32)
    got = grouped_linear(x.to(device), weights.to(device), ends.to(device))
    assert _near(got, grouped_linear(x.double(), weights.double(), ends))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rotation_of_strided_slices(device: torch.device, dtype: torch.dtype) -> None:
    config = model_config(RAW)
    positions = torch.tensor([0, 3, 100, 127, 5], dtype=torch.int32)
    qkv = _random(5, 6, 64).to(dtype)
    expected = RopeTable(config.rope, config.head_dim, qkv.float()).at(positions).together(qkv.float()[:, :5], 4)
    there = qkv.to(device)
    rotation = RopeTable(config.rope, config.head_dim, there).at(positions.to(device))
    assert isinstance(rotation, FusedRotation)
    for got, wanted in zip(rotation.together(there[:, :5], 4), expected, strict=True):
        assert _near(got, wanted)
    assert torch.equal(there[:, 5].cpu(), qkv[:, 5])
