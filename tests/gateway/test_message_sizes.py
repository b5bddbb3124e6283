"""No message to a client is larger than what any gRPC client accepts, however much has gathered for it."""

from __future__ import annotations

import asyncio

from baton.gateway.core.stream import TextToken
from baton.gateway.grpc_service import _responses
from baton.protocol.request import MAX_LOGPROBS
from baton.router.core.completion import Completion

ACCEPTED_BYTES = 4 << 20  # by a gRPC client that was not told otherwise


def test_what_gathered_for_a_client_comes_in_messages_of_bounded_size() -> None:
    likeliest = tuple((index + 100_000, -1.5) for index in range(MAX_LOGPROBS))
    gathered = [TextToken(index, 100_000, "a long token of text", -0.5, likeliest) for index in range(4_500)]
    batches: list[tuple[list[TextToken], Completion | None]] = [(gathered[:100], None), (gathered[100:], None)]

    async def next_batch() -> tuple[list[TextToken], Completion | None]:
        if not batches:
            raise StopAsyncIteration
        return batches.pop(0)

    async def read() -> None:
        indices: list[int] = []
        try:
            async for response, _ in _responses(next_batch, first=7):
                assert response.ByteSize() < ACCEPTED_BYTES / 4
                indices.extend(token.index for token in response.tokens)
        except RuntimeError:
            pass  # nothing more comes
        assert indices == list(range(7, 4_500))

    asyncio.run(read())
