"""The same tokens in any batch: exactly in float32; in 16-bit types except where rounding decides a near-tie.

A token is a function of the request's logits, parameters and position (tests/engine/test_sampler.py). The logits are
not quite a function of the request: a matrix product rounds differently with other rows beside it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baton.engine.step import SampledToken
from baton.protocol.request import SamplingParams
from tests.checkpoints import build_checkpoint
from tests.engine.running import load_executor, sampled_tokens

REQUESTS, OUTPUT = 24, 32
# Largest difference of a request's log-probabilities between batches. Measured on two CPU cores: 1e-6, 2e-3, 1.2e-2.
BOUND = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


def requests() -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts of many lengths; every second one is sampled, the others are greedy."""
    rng = random.Random(5)
    prompts = [[rng.randrange(2, 320) for _ in range(rng.randint(1, 150))] for _ in range(REQUESTS)]
    params = [
        SamplingParams(max_tokens=OUTPUT, ignore_eos=True, logprobs=20, temperature=0.8 * (index % 2), seed=index)
        for index in range(REQUESTS)
    ]
    return prompts, params


def until_they_part(one: list[SampledToken], other: list[SampledToken]) -> list[tuple[SampledToken, SampledToken]]:
    """Token pairs at the positions where both answers have the same past; only the last pair may differ."""
    pairs = []
    for pair in zip(one, other, strict=True):
        pairs.append(pair)
        if pair[0].token_id != pair[1].token_id:
            break
    return pairs


def in_two_threads(compute: Callable[[], list[list[SampledToken]]]) -> list[list[SampledToken]]:
    """The result when two threads share each matrix product; elsewhere in the suite one computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return compute()
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dtype"), [*(("llama3", dtype) for dtype in BOUND), ("qwen3-moe", "float32")])
def test_other_batches_give_the_same_tokens_but_for_near_ties_of_the_dtype(
    tmp_path: Path, family: str, dtype: str, record_property: Callable[[str, object], None]
) -> None:
    executor = load_executor(build_checkpoint(tmp_path, family, seed=3), num_pages=400, dtype=dtype)
    prompts, params = requests()
    alone = [sampled_tokens(executor, [prompts[i]], [params[i]], 512)[0] for i in range(REQUESTS)]
    ways = {
        "chunked": [sampled_tokens(executor, [prompts[i]], [params[i]], 16)[0] for i in range(REQUESTS)],
        "together": sampled_tokens(executor, prompts, params, 512),
        "together and chunked": sampled_tokens(executor, prompts, params, 48),
        "together in two threads": in_two_threads(lambda: sampled_tokens(executor, prompts, params, 512)),
    }
    for way, answers in ways.items():
        equal = 0
        for sampling, one, other in zip(params, alone, answers, strict=True):
            equal += [token.token_id for token in one] == [token.token_id for token in other]
            for mine, theirs in until_they_part(one, other):
                before, after = dict(mine.top_logprobs), dict(theirs.top_logprobs)
                assert max(abs(before[id] - after[id]) for id in before.keys() & after.keys()) <= BOUND[dtype]
                if mine.token_id != theirs.token_id and sampling.greedy:  # a near-tie in both batches
                    assert 0.0 <= before[mine.token_id] - before[theirs.token_id] <= 2 * BOUND[dtype]
                    assert 0.0 <= after[theirs.token_id] - after[mine.token_id] <= 2 * BOUND[dtype]
        record_property(f"{dtype}, {way}: requests with the same tokens", f"{equal} of {REQUESTS}")
        print(f"{dtype}, {way}: {equal} of {REQUESTS} requests have the same tokens as alone")
        if dtype == "float32":
            assert equal == REQUESTS


@pytest.mark.parametrize("dtype", BOUND)
def test_the_same_batch_gives_the_same_tokens_and_log_probabilities_in_every_dtype(tmp_path: Path, dtype: str) -> None:
    executor = load_executor(build_checkpoint(tmp_path, "llama3", seed=3), num_pages=400, dtype=dtype)
    assert sampled_tokens(executor, *requests(), 48) == sampled_tokens(executor, *requests(), 48)
