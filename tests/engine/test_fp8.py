"""FP8 weights are loaded as the numbers that their format defines; what is not of a known form is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from baton.config.parse import parse_config
from baton.deploy.cluster import resolve_here
from baton.engine import weights
from baton.engine.checkpoint import check_weights, read_config
from baton.engine.fp8 import Fp8, read_fp8
from baton.engine.weights import load_weights
from baton.protocol.errors import ModelError
from baton.protocol.request import SamplingParams
from tests.checkpoints import FAMILIES
from tests.engine.fp8_checkpoints import FORMS, build_pair
from tests.engine.running import generate, load_executor, logits_of
from tests.engine.test_rank_weights import Place

GROUP = {"num_bits": 8, "type": "float", "strategy": "channel"}
Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["llama3", "phi3", "qwen3-moe"])
def test_every_rank_loads_the_numbers_of_the_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, family: str
) -> None:
    monkeypatch.setattr(weights, "BAND_VALUES", 10_000)
    stored, plain = build_pair(tmp_path, FORMS[form], family)
    for num_ranks, rank in ((1, 0), (2, 0), (2, 1)):
        for dtype in (torch.float32, torch.bfloat16):
            loaded, expected = (
                load_weights(folder, read_config(folder), dtype, ranks=Place(num_ranks, rank))
                for folder in (stored, plain)
            )
            assert loaded.keys() == expected.keys()
            for name, values in loaded.items():
                assert values.dtype == dtype
                assert torch.equal(values, expected[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_tokens_are_those_of_the_dequantised_checkpoint(tmp_path: Path, family: str) -> None:
    form = list(FORMS)[list(FAMILIES).index(family) % len(FORMS)]
    executors = [load_executor(folder) for folder in build_pair(tmp_path, FORMS[form], family)]
    logits, expected = (logits_of(executor, torch.arange(50, 90)) for executor in executors)
    assert torch.equal(logits, expected)
    prompts, params = [[5], list(range(40))], SamplingParams(max_tokens=16, ignore_eos=True)
    tokens, expected_tokens = (generate(executor, prompts, [params] * 2) for executor in executors)
    assert tokens == expected_tokens


def test_the_whole_range_of_fp8_is_read_exactly(tmp_path: Path) -> None:
    stored, _ = build_pair(tmp_path, FORMS["fp8, per tensor"], "llama2", hidden_size=256, intermediate_size=128)
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[0x7F, 0xFF]] = 0  # The two that are not numbers.
    every = codes.view(torch.float8_e4m3fn).expand(128, 256).contiguous()
    name = "model.layers.0.mlp.gate_proj.weight"
    scale = torch.tensor(0.1)
    _edit(stored, lambda tensors: tensors.update({name: every, f"{name}_scale": scale}))
    loaded = load_weights(stored, read_config(stored), torch.float32)["0.gate_up"][:128]
    assert torch.equal(loaded, (every.double() * scale.double()).float())


def test_a_weight_and_its_scales_may_be_in_different_shards(tmp_path: Path) -> None:
    stored, _ = build_pair(tmp_path, FORMS["fp8, blocks"], "llama2")
    expected = load_weights(stored, read_config(stored), torch.float32)
    tensors = load_file(stored / "model.safetensors")
    (stored / "model.safetensors").unlink()
    shards = {name: "b.safetensors" if "scale" in name else "a.safetensors" for name in tensors}
    for shard in ("a.safetensors", "b.safetensors"):
        save_file({name: tensor for name, tensor in tensors.items() if shards[name] == shard}, stored / shard)
    (stored / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    loaded = load_weights(stored, read_config(stored), torch.float32)
    assert all(torch.equal(loaded[name], values) for name, values in expected.items())


def test_a_cluster_accepts_it_and_counts_its_weights_in_the_compute_dtype(tmp_path: Path) -> None:
    facts = []
    for folder in build_pair(tmp_path, FORMS["fp8, blocks"], "llama2"):
        resolve_here(parse_config(overrides={"model": {"path": str(folder)}}))
        facts.append(read_config(folder).num_parameters)
    assert facts[0] == facts[1]


def test_scales_of_an_unused_head_are_unused(tmp_path: Path) -> None:
    stored, _ = build_pair(tmp_path, FORMS["fp8, per tensor"], "llama2", tie_word_embeddings=True)
    head = torch.zeros(320, 320, dtype=torch.float8_e4m3fn)
    _edit(stored, lambda tensors: tensors.update({"lm_head.weight": head, "lm_head.weight_scale": torch.ones(())}))
    check_weights(stored, read_config(stored))


NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        ("fp8, blocks", lambda tensors: tensors.pop(f"{NAME}_scale_inv"), "0 tensors of scales"),
        ("fp8, blocks", lambda tensors: tensors.update({f"{NAME}_scale": torch.ones(1)}), "2 tensors of scales"),
        (
            "fp8, blocks",
            lambda tensors: tensors.update({f"{NAME}_scale_inv": torch.ones(1)}),
            r"\[1\] instead of \[3, 3\]",
        ),
        (
            "fp8, per tensor",
            lambda tensors: tensors.update({f"{NAME}_scale": torch.ones(2)}),
            r"\[2\] instead of \[1\]",
        ),
        ("fp8, per tensor", lambda tensors: tensors.update({f"{NAME}_scale": torch.ones(1).char()}), "of type I8"),
        ("fp8, per tensor", lambda tensors: tensors.update({NAME: tensors[NAME].to(torch.float8_e5m2)}), "F8_E5M2"),
        (
            "fp8, per tensor",
            lambda tensors: tensors.update({NAME: tensors[NAME].float()}),
            "up_proj.weight_scale|input_scale",
        ),
        (
            "fp8, per tensor",
            lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(torch.float8_e4m3fn)}),
            "only matrices",
        ),
    ],
)
def test_scales_that_do_not_fit_are_named(
    tmp_path: Path, form: str, change: Callable[[Tensors], Any], words: str
) -> None:
    stored, _ = build_pair(tmp_path, FORMS[form], "llama2")
    _edit(stored, change)
    with pytest.raises(ModelError, match=words):
        check_weights(stored, read_config(stored))


@pytest.mark.parametrize(
    ("quantisation", "words"),
    [
        ({"quant_method": "awq", "bits": 4}, r"\(awq, 4 bits\)"),
        ({"quant_method": "mxfp4"}, r"\(mxfp4\)"),
        ({"quant_method": "fbgemm_fp8"}, r"\(fbgemm_fp8\)"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, r"\(modelopt, NVFP4\)"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, r"\(fp8, e5m2\)"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"\[128\] for the block"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, r"\[0, 128\] for the block"),
        ({"format": "int-quantized"}, "int-quantized"),
        ({"format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        ({"config_groups": {}}, r"\(compressed-tensors, float-quantized\)"),
        ({"config_groups": {"a": {"weights": {**GROUP, "num_bits": 4}}}}, "4 bits, scales per channel"),
        ({"config_groups": {"a": {"weights": {**GROUP, "type": "int"}}}}, "float-quantized, 8 bits"),
        ({"config_groups": {"a": {"weights": {**GROUP, "strategy": "group"}}}}, "scales per group"),
        ({"config_groups": {"a": {"weights": GROUP, "format": "pack-quantized"}}}, "compressed-tensors"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask sparsity"),
        ({"transform_config": {"config_groups": {"a": 1}}}, "transformed"),
    ],
)
def test_other_quantisations_are_refused_by_name(quantisation: dict[str, Any], words: str) -> None:
    group = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"a": {"weights": GROUP}},
    }
    assert read_fp8({"quantization_config": group}) == Fp8(None)
    raw = quantisation if "quant_method" in quantisation else {**group, **quantisation}
    with pytest.raises(ModelError, match=words):
        read_fp8({"quantization_config": raw})


def _edit(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
