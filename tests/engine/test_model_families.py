"""The model gives the logits and tokens of transformers on the same weights, for every family."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from baton.engine.sequence import Sequence, page_ids
from baton.engine.step import Slice, StepPlan
from baton.protocol.request import Request, SamplingParams
from tests.checkpoints import FAMILIES, build_checkpoint
from tests.engine.running import generate, load_executor, logits_of


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    folder = build_checkpoint(tmp_path, family, tie_word_embeddings=tied)
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor(random.Random(1).choices(range(320), k=150))
    with torch.inference_mode():
        expected = reference(tokens.unsqueeze(0)).logits[0]
    assert (logits_of(load_executor(folder), tokens) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_continuations_of_a_mixed_batch_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    folder = build_checkpoint(tmp_path, family, seed=3)
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rng = random.Random(2)
    prompts = [[rng.randrange(2, 320) for _ in range(length)] for length in (1, 15, 16, 17, 100)]
    got = generate(load_executor(folder), prompts, [SamplingParams(max_tokens=64, ignore_eos=True)] * len(prompts))
    for prompt, output in zip(prompts, got, strict=True):
        expected = reference.generate(
            torch.tensor([prompt]),
            max_new_tokens=64,
            min_new_tokens=64,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert output == expected[0, len(prompt) :].tolist()


def test_a_sharded_checkpoint_gives_the_same_tokens(tmp_path: Path) -> None:
    whole = build_checkpoint(tmp_path / "whole", "qwen2")
    sharded = build_checkpoint(tmp_path / "sharded", "qwen2", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    prompts, params = [[5, 6, 7]], [SamplingParams(max_tokens=20, ignore_eos=True)]
    assert generate(load_executor(whole), prompts, params) == generate(load_executor(sharded), prompts, params)


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "qwen3", scale=1.0)
    tokens = torch.arange(2, 102)
    exact, rough = (logits_of(load_executor(folder, dtype=dtype), tokens) for dtype in ("float32", "bfloat16"))
    assert (rough - exact).norm() / exact.norm() < 3e-2


def test_a_resumed_token_behind_a_chunk_changes_nothing_for_the_chunk(tmp_path: Path) -> None:
    """After a failure a sequence may have one token left to prefill, which looks like a decode behind a prefill."""
    executor = load_executor(build_checkpoint(tmp_path, seed=4))
    fresh = Sequence.start(Request("a", tuple(range(5, 25)), SamplingParams()))
    resumed = Sequence.start(Request("b", tuple(range(40, 60)), SamplingParams()), (61,))
    fresh.page_table, resumed.page_table = page_ids([0, 1]), page_ids([2, 3])
    (alone,) = executor.execute(StepPlan((Slice(fresh, 0, 20, True),))).tokens
    executor.execute(StepPlan((Slice(resumed, 0, 20, False),)))
    resumed.computed = 20
    (second_alone,) = executor.execute(StepPlan((Slice(resumed, 20, 1, True),))).tokens
    together = executor.execute(StepPlan((Slice(fresh, 0, 20, True), Slice(resumed, 20, 1, True)))).tokens
    assert [token.token_id for token in together] == [alone.token_id, second_alone.token_id]
