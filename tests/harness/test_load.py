"""The load generator against a scripted server: how it sends, and which answers it takes for wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import baton
from baton.client.answer import Answer, Token
from baton.harness.load import Load, Sent
from tests.client.fake_inference import FakeInference, breaks_after, serving, slow, tokens

OPTIONS: dict[str, Any] = {"max_tokens": 3}


def play(scenario: Callable[[Load], Awaitable[None]], *parts: Any, **fields: Any) -> FakeInference:
    """Run a scenario with a load on a server that plays these parts; returns the server."""
    fake = FakeInference(list(parts))

    async def run(address: str) -> None:
        async with baton.AsyncClient(address, give_up_s=0.1) as client:
            await scenario(Load(client, OPTIONS, **fields))

    with serving(fake) as (address, _):
        asyncio.run(run(address))
    return fake


def test_clients_send_again_until_the_block_ends_and_wait_for_their_last_answers() -> None:
    async def scenario(load: Load) -> None:
        await load.learn()
        async with load.clients(3):
            assert await load.next_answer(10.0)
            assert len(load.live) <= 3
        assert not load.live
        assert load.ended == load.done
        assert len(load.done) >= 3
        assert not load.wrong

    fake = play(scenario, tokens(7, 8, 9), prompts=[[1, 2], [3]])
    assert {(tuple(asked.token_ids.ids), asked.sampling.seed) for asked in fake.asked} == {
        ((1, 2), 0),
        ((3,), 1),
    }


def test_a_token_that_differs_from_the_undisturbed_answer_is_reported() -> None:
    async def scenario(load: Load) -> None:
        await load.learn()
        await load.arrivals(100.0, 0.2)
        await load.settled()
        assert load.wrong == [f"{one.request_id}: 1 tokens wrong, 0 missing, 0 repeated." for one in load.ended]
        assert len(load.wrong) > 0

    play(scenario, tokens(7, 8, 9), tokens(7, 5, 9), prompts=[[1]])


def test_an_error_is_reported_and_is_no_answer() -> None:
    async def scenario(load: Load) -> None:
        await load.arrivals(50.0, 0.1)
        await load.settled()
        assert [type(one.error) for one in load.ended] == [baton.NoWorkers] * len(load.ended)
        assert len(load.wrong) == len(load.ended) > 0
        assert not load.done

    play(scenario, breaks_after(), fresh_tokens=(2, 4))


def test_clients_that_leave_are_counted_apart_and_send_again() -> None:
    async def scenario(load: Load) -> None:
        await load.learn()
        async with load.clients(4):
            while not all(one.shown_s for one in load.live.values()):
                await asyncio.sleep(0)
            await load.leave(0.5, 0.0)
            assert await load.next_answer(10.0)
        assert len(load.left) == 2
        assert len(load.done) >= 4
        assert not load.wrong

    play(scenario, slow(0.01, *[1] * 50), prompts=[[5]])


def test_arrivals_above_the_limit_are_left_out() -> None:
    async def scenario(load: Load) -> None:
        left_out = await load.arrivals(200.0, 0.3, max_open=2)
        assert len(load.live) == 2
        assert left_out > 10
        await load.leave(1.0, 0.0)
        await load.settled()

    play(scenario, slow(0.01, *[1] * 1000), fresh_tokens=(1, 1))


def test_half_of_the_prompts_are_fresh_where_both_kinds_are_wanted() -> None:
    load = Load(None, OPTIONS, [[1], [2]], (5, 9), random.Random(3))  # type: ignore[arg-type]
    drawn = [load._next_prompt() for _ in range(400)]
    fresh = [prompt for index, prompt in drawn if index is None]
    assert 150 < len(fresh) < 250
    assert {len(prompt) for prompt in fresh} == {5, 6, 7, 8, 9}


def _absorbed(indices: list[int], expected: list[int] | None) -> tuple[int, int, int]:
    """(wrong, missing, repeated) for an answer whose tokens are ten times their index."""
    shown = tuple(Token(index, 10 * index, "") for index in indices)
    answer = Answer("r", "", shown, "length", 1, len(shown), 0, 0.0, 0.1, None, 0.2, "", "", 1, 0, None)
    sent = Sent("r", 0.0, None)
    sent.absorb(answer, expected)
    return sent.wrong, sent.missing, sent.repeated


def test_gaps_repeats_and_surplus_tokens_are_counted() -> None:
    assert _absorbed([0, 1, 2], [0, 10, 20]) == (0, 0, 0)
    assert _absorbed([0, 2], [0, 10, 20]) == (0, 1, 0)
    assert _absorbed([0, 1, 1, 2], [0, 10, 20]) == (0, 0, 1)
    assert _absorbed([0, 1, 2], [0, 10]) == (1, 0, 0)
    assert _absorbed([0, 1], [0, 11, 20]) == (1, 1, 0)
    assert _absorbed([0, 2], None) == (0, 1, 0)
