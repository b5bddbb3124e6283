"""Long bodies are read in a thread."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from baton.gateway.http.completions import parse_completion
from baton.gateway.http.long_bodies import LONG_BYTES, parsed
from baton.protocol.errors import InvalidRequest
from tests.gateway.http.bodies import MODEL


@pytest.mark.parametrize(("num_bytes", "in_thread"), [(LONG_BYTES, False), (LONG_BYTES + 1, True)])
def test_a_long_body_is_read_in_a_thread(num_bytes: int, in_thread: bool) -> None:
    def thread(body: bytes) -> int:
        return threading.get_ident()

    assert (asyncio.run(parsed(thread, bytes(num_bytes))) != threading.get_ident()) == in_thread


@pytest.mark.parametrize("length", [10, 2 * LONG_BYTES])
def test_what_is_read_and_what_is_refused_is_the_same(length: int) -> None:
    text = "x" * length
    ask = asyncio.run(parsed(parse_completion, json.dumps({"prompt": text}).encode(), MODEL))
    assert ask.prompts == (text,)
    with pytest.raises(InvalidRequest, match="n is 0"):
        asyncio.run(parsed(parse_completion, json.dumps({"prompt": text, "n": 0}).encode(), MODEL))


def test_the_loop_turns_while_a_body_of_many_keys_is_read() -> None:
    body = json.dumps({"prompt": "a", **{str(number): 1 for number in range(200_000)}}).encode()

    async def turns() -> int:
        reading = asyncio.ensure_future(parsed(parse_completion, body, MODEL))
        count = 0
        while not reading.done():
            await asyncio.sleep(0)
            count += 1
        return count

    assert asyncio.run(turns()) > 3
