"""Ropes, biases and scales of the families give the logits and tokens of transformers, over the whole context."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from baton.engine.checkpoint import read_config
from baton.engine.executor import TorchExecutor
from baton.engine.rope_config import FactorPerFrequency
from baton.protocol.errors import ModelError
from baton.protocol.request import SamplingParams
from tests.checkpoints import build_checkpoint
from tests.engine.model_variants import VARIANTS, Variant, every_rope
from tests.engine.running import generate, load_executor, logits_of
from tests.engine.test_config_corners import edit_config

GREEDY = SamplingParams(max_tokens=64, ignore_eos=True)
_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_ORIGINAL = {"original_max_position_embeddings": 256}


def _built(folder: Path, variant: Variant) -> tuple[Any, TorchExecutor]:
    """transformers' model and ours, whose logits are compared at every position of the context."""
    build_checkpoint(folder, variant.family, seed=3, **variant.overrides)
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    executor = load_executor(folder)
    assert executor.config.context_tokens == variant.context
    tokens = torch.tensor(random.Random(1).choices(range(320), k=variant.context))
    with torch.inference_mode():
        expected = reference(tokens.unsqueeze(0)).logits[0]
    assert (logits_of(executor, tokens) - expected).abs().max() <= 1e-4
    return reference, executor


@pytest.mark.parametrize("variant", every_rope(), ids=lambda variant: f"{variant.family}, {variant.rope}")
def test_logits_with_each_rope_of_each_family_are_those_of_transformers(tmp_path: Path, variant: Variant) -> None:
    _built(tmp_path, variant)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    reference, executor = _built(tmp_path, VARIANTS[name])
    rng = random.Random(1)
    prompts = [[rng.randrange(2, 320) for _ in range(length)] for length in (1, 17, 100)]
    for prompt, output in zip(prompts, generate(executor, prompts, [GREEDY] * len(prompts)), strict=True):
        answer = reference.generate(
            torch.tensor([prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False, eos_token_id=None
        )
        assert output == answer[0, len(prompt) :].tolist()


def _spelling(folder: Path, changes: dict[str, Any]) -> None:
    """Another config.json, with the logits of transformers."""
    edit_config(folder, {"rope_parameters": None, "pad_token_id": 0, **changes})
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    executor = load_executor(folder)
    tokens = torch.tensor(random.Random(2).choices(range(320), k=executor.config.context_tokens))
    with torch.inference_mode():
        expected = reference(tokens.unsqueeze(0)).logits[0]
    assert (logits_of(executor, tokens) - expected).abs().max() <= 1e-4


_SHORT, _LONG = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5], [9.0] * 8


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama2", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5000.0}),
        ("llama2", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("llama2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 5000}),
        (
            "llama2",
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 700.0},
            },
        ),
        (
            "llama2",
            {
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
                "original_max_position_embeddings": 256,
            },
        ),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 128}}),
        ("llama2", {"rope_parameters": {"rope_type": "llama3", "factor": 4.0, **_BANDS}}),
        ("phi3", {"rope_scaling": {"type": "yarn", "short_factor": _SHORT, "long_factor": _LONG}, **_ORIGINAL}),
        ("phi3", {"rope_theta": 5000.0, "partial_rotary_factor": 0.75}),
        ("smollm3", {}),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}),
    ],
)
def test_other_spellings_have_the_logits_of_transformers(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    _spelling(build_checkpoint(tmp_path, family, seed=5), changes)


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        (
            "llama2",
            {"rope_parameters": {"rope_type": "proportional", "factor": 2.0}},
            "The rope scaling proportional is not supported, only default, linear",
        ),
        ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "linear is not supported, only default"),
        ("olmo2", {"partial_rotary_factor": 0.5}, "Olmo2ForCausalLM is not supported with a part of each head"),
        ("phi3", {"partial_rotary_factor": 0.2, "rope_parameters": None}, "rotates 3 of 16 values of a head: .* even"),
        (
            "qwen3",
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "A rope for each type of layer .* is not supported",
        ),
        ("llama2", {"rope_parameters": {"rope_type": "linear", "factor": 0}}, "gives 0 for a number of its .* rope"),
        ("llama2", {"rope_parameters": {"rope_type": "linear"}}, "lacks the key 'factor'"),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "1 numbers in short_factor instead of 8",
        ),
        ("granite", {"residual_multiplier": -1.0}, "gives -1.0"),
        ("phi3", {"attention_bias": True}, "Phi3ForCausalLM with attention_bias is not supported"),
        ("olmo2", {"mlp_bias": True}, "Olmo2ForCausalLM with mlp_bias is not supported"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
    ],
)
def test_other_forms_are_refused_by_name(tmp_path: Path, family: str, changes: dict[str, Any], sentence: str) -> None:
    folder = build_checkpoint(tmp_path, family)
    edit_config(folder, changes)
    with pytest.raises(ModelError, match=sentence):
        read_config(folder)


def test_phi3_s_first_name_of_longrope_means_the_same(tmp_path: Path) -> None:
    """transformers reads `su`, and then misses a key that Phi-3's config.json has elsewhere."""
    folder = build_checkpoint(tmp_path, "phi3")
    read = []
    for kind in ("su", "longrope"):
        rope = {"type": kind, "short_factor": _SHORT, "long_factor": _LONG}
        edit_config(folder, {"rope_parameters": None, "rope_scaling": rope, **_ORIGINAL})
        read.append(read_config(folder).rope)
    assert read[0] == read[1]
    assert read[0].scaling == FactorPerFrequency(tuple(_SHORT))


def test_longrope_is_served_up_to_the_length_at_which_every_position_would_turn_otherwise(tmp_path: Path) -> None:
    variant = VARIANTS["phi3, longrope"]
    folder = build_checkpoint(tmp_path, variant.family, seed=3, **variant.overrides)
    config = read_config(folder)
    assert (config.context_tokens, config.context_limit) == (256, "the short factors of longrope")
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor([random.Random(3).choices(range(320), k=257)])
    with torch.inference_mode():
        within, beyond = reference(tokens[:, :256]).logits[0], reference(tokens).logits[0]
    assert (beyond[:256] - within).abs().amax(dim=-1)[1:].min() > 1e-3, "keys of the first positions change too"
