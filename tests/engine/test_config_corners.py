"""Unusual configurations give the logits of transformers, over the whole context."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from baton.engine.checkpoint import check_weights, read_config
from baton.engine.families.table import FAMILIES
from tests.checkpoints import build_checkpoint
from tests.engine.running import load_executor, logits_of

LENGTH = 100
WINDOW = 32  # far less than LENGTH, so that using the window changes the logits


def edit_config(folder: Path, changes: dict[str, Any]) -> None:
    """Keys of config.json; None leaves a key out."""
    path = folder / "config.json"
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def assert_same_logits(folder: Path) -> None:
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor(random.Random(1).choices(range(320), k=LENGTH))
    with torch.inference_mode():
        expected = reference(tokens.unsqueeze(0)).logits[0]
    assert (logits_of(load_executor(folder), tokens) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama2", {"sliding_window": WINDOW}),
        ("llama2", {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
        ("llama2", {"hidden_act": "swish"}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": ["full_attention"] * 2}),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "layer_types": None},
        ),
        ("qwen2", {"use_sliding_window": None, "sliding_window": WINDOW, "layer_types": None}),
        *((family, {"rms_norm_eps": None}) for family in ("llama2", "mistral", "qwen2", "qwen3")),
    ],
)
def test_the_full_context_is_served_with_the_logits_of_transformers(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    # Small activations, so that another eps would change the logits.
    folder = build_checkpoint(tmp_path, family, scale=0.05 if "rms_norm_eps" in changes else 3.0)
    edit_config(folder, changes)
    config = read_config(folder)
    assert (config.context_tokens, config.context_limit) == (512, "")
    assert_same_logits(folder)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": WINDOW}),
        ("mixtral", {"sliding_window": WINDOW}),
        ("qwen2-moe", {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": None}),
        ("qwen3-moe", {"use_sliding_window": True, "sliding_window": WINDOW}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "layer_types": None}),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": WINDOW,
                "layer_types": ["full_attention", "sliding_attention"],
            },
        ),
    ],
)
def test_a_window_that_a_layer_uses_is_the_context(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    folder = build_checkpoint(tmp_path, family)
    without_window = load_executor(folder)
    edit_config(folder, changes)
    config = read_config(folder)
    assert (config.context_tokens, config.context_limit) == (WINDOW, "the sliding window")
    # Proof that transformers uses the window: its logits differ from the first position behind the window on.
    tokens = torch.arange(2, 2 + LENGTH)
    windowed: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = windowed(tokens.unsqueeze(0)).logits[0]
    differs = (logits_of(without_window, tokens) - expected).abs().amax(dim=-1) > 1e-4
    assert not differs[:WINDOW].any()
    assert differs[WINDOW]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_missing_config_key_has_the_default_of_transformers(name: str) -> None:
    config = getattr(transformers, name.replace("ForCausalLM", "Config"))
    assert FAMILIES[name].rope_theta == config.default_theta
    # An instance drops a window that it does not use; the class keeps the default.
    left_out = FAMILIES[name].left_out
    assert {key: getattr(config, key) for key in left_out} == left_out


def test_layers_for_prediction_ahead_and_scales_of_a_quantised_cache_are_left_out(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in list(tensors):
        if name.startswith("model.layers.1."):
            tensors[name.replace(".1.", ".2.", 1)] = torch.zeros(1)
            tensors |= {f"mtp.{name}": torch.zeros(1), f"model.mtp.{name}": torch.zeros(1)}
    for side in ("k", "v"):
        tensors[f"model.layers.0.self_attn.{side}_proj.{side}_scale"] = torch.ones(1)
        tensors[f"model.layers.1.self_attn.{side}_scale"] = torch.ones(1)
    tensors["model.layers.2.eh_proj.weight"] = torch.zeros(1, dtype=torch.int8)
    save_file(tensors, path, metadata={"format": "pt"})
    check_weights(folder, read_config(folder))
    assert_same_logits(folder)
