"""Ropes, biases and scales of the families give the logits and tokens of transformers, over the whole context."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from baton.protocol.request import SamplingParams
from tests.checkpoints import build_checkpoint
from tests.engine.model_variants import VARIANTS
from tests.engine.running import generate, load_executor, logits_of

GREEDY = SamplingParams(max_tokens=64, ignore_eos=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    variant = VARIANTS[name]
    folder = build_checkpoint(tmp_path, variant.family, seed=3, **variant.overrides)
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    executor = load_executor(folder)
    assert executor.config.context_tokens == variant.context
    rng = random.Random(1)
    tokens = torch.tensor([rng.randrange(320) for _ in range(variant.context)])
    with torch.inference_mode():
        expected = reference(tokens.unsqueeze(0)).logits[0]
    assert (logits_of(executor, tokens) - expected).abs().max() <= 1e-4
    prompts = [[rng.randrange(2, 320) for _ in range(length)] for length in (1, 17, 100)]
    for prompt, output in zip(prompts, generate(executor, prompts, [GREEDY] * len(prompts)), strict=True):
        answer = reference.generate(
            torch.tensor([prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False, eos_token_id=None
        )
        assert output == answer[0, len(prompt) :].tolist()
