"""A stream's reader gets all that has come since it last read, and wakes once for it."""

from __future__ import annotations

import asyncio

import pytest

from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.stream import TextToken
from baton.gateway.subscription import Subscription
from baton.protocol.errors import Cancelled
from baton.protocol.latency import Latency
from baton.protocol.request import FinishReason, Request, SamplingParams

REQUEST = Request("r", (5,), SamplingParams())
END = StreamEnd("r", FinishReason.LENGTH, None, 1, 3, 0, "", Latency(0.0))


def _token(index: int) -> TextToken:
    return TextToken(index, 7, "x", None, ())


def test_what_comes_in_one_turn_of_the_loop_is_read_at_once() -> None:
    async def scene() -> None:
        subscription = Subscription(REQUEST, "grpc")
        reader = asyncio.create_task(subscription.next())
        await asyncio.sleep(0)
        for index in range(2):
            subscription.show([_token(index)])
        subscription.finish(END)
        tokens, end = await reader
        assert [token.index for token in tokens] == [0, 1]
        assert end is END

    asyncio.run(scene())


def test_what_came_before_the_reader_is_not_waited_for() -> None:
    async def scene() -> None:
        subscription = Subscription(REQUEST, "grpc")
        subscription.show([_token(0)])
        assert [token.index for token in (await subscription.next())[0]] == [0]
        waiting = asyncio.create_task(subscription.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        subscription.show([_token(1)])
        assert [token.index for token in (await subscription.next())[0]] == [1]

    asyncio.run(scene())


def test_an_error_drops_what_is_unread() -> None:
    async def scene() -> None:
        subscription = Subscription(REQUEST, "grpc")
        subscription.show([_token(0)])
        subscription.fail(Cancelled("taken over"))
        with pytest.raises(Cancelled, match="taken over"):
            await subscription.next()
        assert not subscription.tokens

    asyncio.run(scene())
