"""The linear part of a simulated step."""

from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.simulator.hardware import ACCELERATORS, accelerator
from baton.simulator.layer_time import ALL_REDUCES, LinearPart, all_reduce_seconds
from baton.simulator.models import SHAPES, model_shape

MODELS, GPUS = st.sampled_from(sorted(SHAPES)), st.sampled_from(sorted(ACCELERATORS))


@given(MODELS, GPUS, st.sampled_from([1, 2, 4, 8]), st.integers(1, 8192))
def test_more_tokens_take_longer_and_each_of_them_less(model: str, gpu: str, devices: int, tokens: int) -> None:
    part = LinearPart(model_shape(model), accelerator(gpu), devices)
    once, twice = part.seconds(tokens, 1), part.seconds(2 * tokens, 1)
    assert once < twice < 2 * once


@given(MODELS, GPUS, st.sampled_from([1, 2, 4]), st.integers(1, 8192))
def test_twice_the_devices_take_at_least_half_the_time(model: str, gpu: str, devices: int, tokens: int) -> None:
    shape, kind = model_shape(model), accelerator(gpu)
    some, more = (LinearPart(shape, kind, count).layer_seconds(tokens) for count in (devices, 2 * devices))
    assert some / 2 < more < some


@given(MODELS, GPUS, st.integers(1, 8192))
def test_a_layer_takes_between_its_slower_limit_and_the_sum_of_both(model: str, gpu: str, tokens: int) -> None:
    """`hypot` of two times lies between their maximum and that times √2."""
    part = LinearPart(model_shape(model), accelerator(gpu))
    floor = part.layer_seconds(0)  # Launches and weights
    product = part.layer_seconds(1 << 20) / (1 << 20) * tokens  # Nearly only arithmetic and rows
    assert max(floor, product) * 0.9 < part.layer_seconds(tokens) < sqrt(2) * (floor + product)


def test_one_device_has_nothing_to_add_up_and_several_do_it_twice_a_layer() -> None:
    gpu, shape = accelerator("h100"), model_shape("llama-3.1-70b")
    assert all_reduce_seconds(1e6, 1, gpu) == 0
    part = LinearPart(shape, gpu, 4)
    bare = shape.num_layers * part.layer_seconds(128)
    reduces = shape.num_layers * ALL_REDUCES * part.all_reduce_seconds(128)
    assert part.seconds(128, 0) == pytest.approx(bare + reduces, rel=0.02)  # The head is the rest


def test_devices_beyond_the_kv_heads_share_one() -> None:
    shape = model_shape("qwen2.5-7b")  # 4 KV heads
    assert [LinearPart(shape, accelerator("h100"), devices).kv_heads for devices in (1, 4, 8)] == [4, 1, 1]
