"""The linear part of a simulated step."""

from __future__ import annotations

from math import hypot, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.protocol.errors import ConfigError, ModelError
from baton.simulator.hardware import ACCELERATORS, accelerator
from baton.simulator.layer_time import ALL_REDUCES, LinearPart, all_reduce_seconds
from baton.simulator.models import SHAPES, model_shape, shape_of
from baton.simulator.timing import roofline

MODELS, GPUS = st.sampled_from(sorted(SHAPES)), st.sampled_from(sorted(ACCELERATORS))
DENSE = st.sampled_from([name for name in sorted(SHAPES) if model_shape(name).experts == 1])


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


@given(DENSE, GPUS, st.integers(1, 8192))
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
    layers = shape.config.num_layers
    bare = layers * part.layer_seconds(128)
    reduces = layers * ALL_REDUCES * part.all_reduce_seconds(128)
    assert part.seconds(128, 0) == pytest.approx(bare + reduces, rel=0.02)  # The head is the rest


def test_devices_beyond_the_kv_heads_share_one() -> None:
    shape = model_shape("qwen2.5-7b")  # 4 KV heads
    assert [LinearPart(shape, accelerator("h100"), devices).kv_heads for devices in (1, 4, 8)] == [4, 1, 1]


def _product_s(rows: float, inputs: int, outputs: int, *, matrices: float = 1, itemsize: int = 2) -> float:
    """On an H100: 72 % of 989 or (FP8) 1979 Tflop/s, 86 % of 3.35 TB/s, and a launch."""
    flops = 989e12 if itemsize == 2 else 1979e12
    moved = itemsize * matrices * inputs * outputs + 2 * rows * (inputs + outputs)
    return 1.5e-6 + hypot(2 * rows * inputs * outputs / (0.72 * flops), moved / (0.86 * 3.35e12))


@pytest.mark.parametrize(("tokens", "distinct"), [(1, 2), (2, 3.5), (8, 8 * (1 - 0.75**8)), (4096, 8)])
def test_experts_are_read_once_and_multiply_the_tokens_that_take_them(tokens: int, distinct: float) -> None:
    """Mixtral by hand: 8 experts of 3 × 4096 × 14336 numbers per layer, of which each token takes 2."""
    part = LinearPart(model_shape("mixtral-8x7b"), accelerator("h100"))
    attention = _product_s(tokens, 4096, 6144) + _product_s(tokens, 4096, 4096) + _product_s(tokens, 4096, 8)
    up = _product_s(2 * tokens, 4096, 2 * 14336, matrices=distinct)
    down = _product_s(2 * tokens, 14336, 4096, matrices=distinct)
    numbers = 7 * 4096 + 2 * (32 + 8) * 128 + 3 * 2 * 14336 + 3 * 4096 + 2 * 8
    rows = 2 * numbers * tokens / (0.60 * 3.35e12) + 7 * 5e-6
    assert part.layer_seconds(tokens) == pytest.approx(attention + up + down + rows, rel=1e-9)


def test_fp8_halves_what_a_layer_reads_and_doubles_the_rate_where_the_gpu_has_it() -> None:
    """A fourth of Llama 3.3 70B by hand; its head stays in bfloat16."""
    whole, half = model_shape("llama-3.3-70b"), model_shape("llama-3.3-70b-fp8")
    part = LinearPart(half, accelerator("h100"), 4)
    for tokens in (1, 300, 8192):
        shapes = ((8192, (16 + 2 * 2) * 128), (2048, 8192), (8192, 2 * 7168), (7168, 8192))
        products = sum(_product_s(tokens, *shape, itemsize=1) for shape in shapes)
        rows = 2 * tokens * (7 * 8192 + 2 * (16 + 2) * 128 + 3 * 7168) / (0.60 * 3.35e12) + 5 * 5e-6
        assert part.layer_seconds(tokens) == pytest.approx(products + rows, rel=1e-9)
    head_s = part.seconds(0, 5) - part.seconds(0, 0)
    assert head_s == pytest.approx(_product_s(5, 8192, 128256 // 4) - _product_s(0, 8192, 128256 // 4))
    a100 = accelerator("a100")  # Without such tensor cores a long prompt takes as long
    assert LinearPart(half, a100).layer_seconds(8192) > 0.9 * LinearPart(whole, a100).layer_seconds(8192)
    assert LinearPart(half, a100).layer_seconds(1) < 0.65 * LinearPart(whole, a100).layer_seconds(1)


@pytest.mark.parametrize(
    ("model", "parameters", "active", "weight_bytes"),
    [
        ("mixtral-8x7b", 46_702_526_464, 12_879_659_008, 93_405_052_928),
        ("qwen3-30b-a3b", 30_531_911_680, 3_352_821_760, 61_063_823_360),
        # 29,909,581,824 - 12,582,912 of router at one byte, router and 622,329,856 of embedding and head at two
        ("qwen3-30b-a3b-fp8", 30_531_911_680, 3_352_821_760, 29_896_998_912 + 2 * (12_582_912 + 622_329_856)),
        # 80 layers of 855,638,016 at one byte, 2 × 128256 × 8192 at two
        ("llama-3.3-70b-fp8", 70_552_387_584, 70_552_387_584, 80 * 855_638_016 + 2 * 2_101_346_304),
    ],
)
def test_weights_are_counted_with_all_experts(model: str, parameters: int, active: int, weight_bytes: int) -> None:
    shape = model_shape(model)
    assert (shape.num_parameters, shape.active_parameters, shape.weight_bytes) == (parameters, active, weight_bytes)


def test_a_config_json_says_its_experts_and_the_bytes_of_its_weights() -> None:
    known = SHAPES["qwen3-30b-a3b"]
    scheme = {
        "quant_method": "compressed-tensors",
        "config_groups": {"all": {"weights": {"num_bits": 8, "type": "float"}}},
    }
    assert shape_of({**known, "quantization_config": scheme}) == model_shape("qwen3-30b-a3b-fp8")
    with pytest.raises(ConfigError, match="quantised by gptq"):
        shape_of({**known, "quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(ModelError, match="num_experts"):
        shape_of({key: value for key, value in known.items() if key != "num_experts"})


def test_kv_of_shared_heads_takes_memory_on_each_device() -> None:
    """Qwen3 30B-A3B by hand: 4 KV heads, on 8 devices two copies of each."""
    weights = 61_063_823_360 - 2 * 12_582_912
    head_bytes = 2 * 2 * 48 * 128 * 64  # Of a page
    kv_weights = 2 * 2 * 48 * 2048 * 128  # Of one head
    for devices, heads, copied in ((4, 1, 0.0), (8, 1, 0.5)):
        timer = roofline(model_shape("qwen3-30b-a3b"), accelerator("h100"), devices)
        weight_bytes = weights / devices + 2 * 12_582_912 + copied * kv_weights
        room = 0.9 * 80e9 - weight_bytes - 3e9
        layout = timer.page_layout(64)
        assert layout.num_pages == int(room // (heads * head_bytes))
        assert timer.page_bytes(64) == devices * heads * head_bytes
        assert layout.page_bytes == 4 * head_bytes
