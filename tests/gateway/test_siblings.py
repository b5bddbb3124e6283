"""Seeds and turns of several sequences of one prompt."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from baton.gateway.siblings import Siblings, seed_of, sibling
from baton.protocol.request import Request, SamplingParams

SEEDS = st.integers(-(2**63), 2**63 - 1)


@given(SEEDS, st.integers(1, 128))
def test_a_seed_is_a_function_of_the_requests_and_the_index_and_is_valid(seed: int, index: int) -> None:
    assert seed_of(seed, 0) == seed
    assert seed_of(seed, index) == seed_of(seed, index) != seed_of(seed, index + 1)
    SamplingParams(seed=seed_of(seed, index)).validate(10)


def test_the_seeds_of_neighbouring_requests_differ_and_stay_what_they_are() -> None:
    seeds = {seed_of(seed, index) for seed in range(100) for index in range(8)}
    assert len(seeds) == 800
    assert [seed_of(3, index) for index in range(3)] == [3, 8_939_634_170_434_151_268, 2_881_327_029_038_714_485]


def test_a_sibling_differs_in_id_and_seed_and_leaves_the_prompts_log_probabilities_to_the_first() -> None:
    request = Request("r", (1, 2), SamplingParams(seed=7, logprobs=1, prompt_logprobs=2))
    assert sibling(request, 0, "r") == request
    other = sibling(request, 2, "r-2")
    assert (other.request_id, other.prompt) == ("r-2", (1, 2))
    assert other.sampling == SamplingParams(seed=seed_of(7, 2), logprobs=1)


def test_the_first_of_each_prompt_goes_at_once_and_the_others_when_it_has_begun() -> None:
    async def scene() -> None:
        siblings, gone = Siblings(3), list[int]()

        async def go(number: int) -> None:
            await siblings.turn(number)
            gone.append(number)

        waiting = [asyncio.ensure_future(go(number)) for number in range(6)]
        await asyncio.sleep(0)
        assert gone == [0, 3]
        siblings.begun(3)
        await asyncio.gather(waiting[4], waiting[5])
        assert gone == [0, 3, 4, 5]
        siblings.begun(0)
        await asyncio.gather(*waiting)
        assert gone == [0, 3, 4, 5, 1, 2]

    asyncio.run(scene())
