"""A prefill worker and a decode worker, each of its own processes, give transformers' greedy tokens together."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import baton
from baton.harness.process_cluster import ProcessCluster, plans
from baton.protocol.request import SamplingParams
from tests.checkpoints import build_checkpoint
from tests.engine.model_variants import VARIANTS

GREEDY = SamplingParams(max_tokens=64, ignore_eos=True)
PROMPTS = [random.Random(length).choices(range(3, 320), k=length) for length in (1, 40, 100)]


async def _answers(folder: Path, ranks: dict[str, int]) -> list[baton.Answer]:
    router_config, worker_config = plans(folder, 256, 100, policy="least_loaded", chunk_tokens=64)
    async with ProcessCluster(router_config, worker_config, {"prefill": 1, "decode": 1}, ranks) as cluster:
        async with baton.AsyncClient(cluster.address) as client:
            asked = [client.generate(prompt, GREEDY, timeout_s=60) for prompt in PROMPTS]
            answers = await asyncio.gather(*asked)
        await cluster.until_idle()
    return answers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("phi4-mini", {}),
        ("smollm3, biases", {"prefill": 2}),
        ("olmo2, biases", {"decode": 2}),
        ("granite, biases", {"prefill": 2, "decode": 2}),
    ],
)
def test_the_tokens_are_those_of_transformers(tmp_path: Path, name: str, ranks: dict[str, int]) -> None:
    variant = VARIANTS[name]
    folder = build_checkpoint(tmp_path, variant.family, seed=3, **variant.overrides)
    answers = asyncio.run(asyncio.wait_for(_answers(folder, ranks), 120))
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = reference.generate(
            torch.tensor([prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False, eos_token_id=None
        )
        assert list(answer.token_ids) == expected[0, len(prompt) :].tolist()
        assert answer.handoff is not None or len(prompt) == 1
