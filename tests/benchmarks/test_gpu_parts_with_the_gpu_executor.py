"""The parts of benchmarks.gpu with the GPU's executor, on CPU tensors.

FlashInfer's calls are computed by the reference; CUDA is not used.
"""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baton.engine.attention import flashinfer as backend
from baton.engine.model_config import model_config
from benchmarks.gpu import compiling, correctness, decode, device, kernels, prefill, profile
from benchmarks.gpu.attention_check import Geometry, Row, attention_error, layout_of
from benchmarks.gpu.device import Device
from benchmarks.gpu.figures import EXPECTED, LAYOUTS
from benchmarks.gpu.graphs_check import recorded_error
from benchmarks.gpu.logits_check import logits_errors
from benchmarks.gpu.part import Options, Part
from benchmarks.gpu.sizes import SIZES, TINY
from tests.engine import flashinfer_reference

STORED = {
    "pages_per_layer": ["layer", "page", "side", "position", "kv_head"],
    "layers_in_page": ["page", "layer", "side", "position", "kv_head"],
    "heads_outermost": ["page", "kv_head", "layer", "side", "position"],
}
RAW = {**TINY, "head_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1}


@pytest.fixture(autouse=True)
def gpu_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer_reference)
    monkeypatch.setattr(backend, "KERNEL_DTYPES", (torch.float32,))
    monkeypatch.setattr(Device, "on_gpu", True)
    monkeypatch.setattr(Device, "facts", lambda self: {})
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 30, 1 << 30))
    for module in (compiling, correctness, decode, kernels, prefill, profile):
        monkeypatch.setattr(module, "prepare", lambda name: Device("cpu"))
    sizes = replace(SIZES["tiny"], model=RAW, small_model=RAW, repeats=2)
    monkeypatch.setitem(SIZES, "tiny", sizes)
    monkeypatch.setattr(device, "WARM_UPS", 1)


def _run(module: object, name: str, tmp_path: Path) -> Part:
    options = Options("cpu", "tiny", 0, tmp_path / "result.json", tmp_path / "log")
    part = Part(name, options, io.StringIO())
    module.run(part)  # type: ignore[attr-defined]
    assert [failure.traceback for failure in part.result.failures] == []
    return part


def test_attention_is_correct_and_leaves_other_pages_unchanged() -> None:
    assert attention_error(Device("cpu"), Geometry(4, 1, 64, 16, "float32"), 3, seed=5) < 1e-5


def test_an_attention_that_reads_a_wrong_page_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = backend.FlashInferAttention.plan

    def wrong(self, layout) -> None:  # type: ignore[no-untyped-def]
        plan(self, replace(layout, indices=layout.indices.roll(1)))

    monkeypatch.setattr(backend.FlashInferAttention, "plan", wrong)
    with pytest.raises(ValueError, match="Pages hold something else"):
        attention_error(Device("cpu"), Geometry(4, 1, 64, 16, "float32"), 1, seed=5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_of_pages_is_a_view_of_the_same_shape_that_attention_reads(name: str) -> None:
    config, sizes = model_config({**RAW, "num_key_value_heads": 2}), SIZES["tiny"]
    view = kernels.laid_out(name, 3, config, sizes, Device("cpu"))
    layout = config.page_layout(3, sizes.page_size, sizes.dtype, "m")
    assert view.shape == layout.shape
    order = sorted(range(5), key=view.stride, reverse=True)
    assert [("page", "kv_head", "layer", "side", "position")[axis] for axis in order] == STORED[name]
    plain, other = (backend.FlashInferAttention(pages, config.num_heads) for pages in (view.contiguous(), view))
    batch = layout_of([Row(20, 1, [2, 0]), Row(0, 5, [1])], 1, sizes.page_size)
    q, k, v = kernels._projections(6, config, sizes, Device("cpu"))
    for attention in (plain, other):
        attention.plan(batch)
    assert torch.equal(plain.run(1, q, k, v), other.run(1, q, k, v))


def test_logits_are_those_of_transformers() -> None:
    assert logits_errors(Device("cpu"), RAW, "float32", seed=3)["logits_error_to_transformers"] < 1e-5


def test_recorded_steps_equal_unrecorded_ones() -> None:
    assert recorded_error(Device("cpu"), RAW, "float32", seed=3) < 1e-4


@pytest.mark.parametrize(
    ("module", "name"),
    [(compiling, "compile"), (decode, "decode"), (prefill, "prefill"), (kernels, "kernels")],
)
def test_a_part_measures_every_figure_it_names(module: object, name: str, tmp_path: Path) -> None:
    part = _run(module, name, tmp_path)
    sizes = SIZES["tiny"]
    missing = [figure for figure in EXPECTED[name](sizes) if figure not in part.result.figures]
    assert all("b4096_128" in figure for figure in missing)
    assert all(figure in part.result.skipped for figure in missing)


def test_a_profile_shows_where_time_goes_on_device_and_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "MOST_BATCH", 4)
    monkeypatch.setattr(profile, "top_kernels", lambda *_: [])
    part = _run(profile, "profile", tmp_path)
    assert {"profile_prefill_256", "profile_decode_b4_64", "host_b4_64"} <= set(part.result.details)
    assert set(part.result.details["host_b4_64"]) >= {"flat_batch", "attention_plan", "replay", "draw", "absorb"}
    assert "recorded steps take" in part.result.notes[-1]
