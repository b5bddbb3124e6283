"""The two hundred requests that must give the same tokens everywhere."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import baton
from baton.protocol.request import SamplingParams
from tests.live.conftest import CHUNK_TOKENS, PAGE_SIZE

VOCAB = 320


@dataclass(frozen=True, slots=True)
class Case:
    prompt: list[int]
    sampling: SamplingParams


def cases(count: int = 200, seed: int = 11) -> list[Case]:
    """Prompts from 1 token to several chunks, exact multiples of a page, shared prefixes; greedy and sampled."""
    rng = random.Random(seed)
    shared = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in (PAGE_SIZE, 3 * PAGE_SIZE, 70)]
    lengths = [1, 2, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 4 * PAGE_SIZE, 150, 210]
    made = []
    for index in range(count):
        length = lengths[index % len(lengths)] if index % 3 else rng.randint(1, 215)
        prompt = [rng.randrange(3, VOCAB) for _ in range(length)]
        if index % 4 == 0:
            prompt = (rng.choice(shared) + prompt)[:220]
        made.append(Case(prompt, _sampling(rng, index)))
    return made


def _sampling(rng: random.Random, index: int) -> SamplingParams:
    max_tokens = rng.choice([1, 2, 8, 16, 30])
    if index % 2 == 0:
        return SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=rng.choice([0.3, 0.8, 1.2]),
        top_k=rng.choice([0, 5, 50]),
        top_p=rng.choice([1.0, 0.9, 0.5]),
        min_p=rng.choice([0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.1]),
        frequency_penalty=rng.choice([0.0, 0.2]),
        seed=rng.randrange(2**31),
        logprobs=rng.choice([None, 3]),
    )


async def run_all(client: baton.AsyncClient, wanted: list[Case], concurrency: int = 64) -> list[baton.Answer]:
    """Every case's answer, at most `concurrency` streams at once."""
    gate = asyncio.Semaphore(concurrency)

    async def one(case: Case) -> baton.Answer:
        async with gate:
            stream = client.stream(case.prompt, case.sampling, timeout_s=120)
            indices = [token.index async for token in stream]
            answer = await stream.answer()
            assert indices == list(range(len(indices)))
            assert len(indices) == answer.output_tokens
            return answer

    return list(await asyncio.gather(*(one(case) for case in wanted)))
