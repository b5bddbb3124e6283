"""No message to a client is larger than what any gRPC client accepts, however much has gathered for it."""

from __future__ import annotations

import asyncio

from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.stream import TextToken
from baton.gateway.grpc_service import _responses
from baton.protocol.request import MAX_LOGPROBS
from baton.protocol.v1 import inference_pb2

ACCEPTED_BYTES = 4 << 20  # by a gRPC client that was not told otherwise


def test_what_gathered_for_a_client_comes_in_messages_of_bounded_size() -> None:
    likeliest = tuple((index + 100_000, -1.5) for index in range(MAX_LOGPROBS))
    gathered = [TextToken(index, 100_000, "a long token of text", -0.5, likeliest) for index in range(4_500)]
    batches: list[tuple[list[TextToken], StreamEnd | None]] = [(gathered[:100], None), (gathered[100:], None)]

    async def next_batch() -> tuple[list[TextToken], StreamEnd | None]:
        if not batches:
            raise StopAsyncIteration
        return batches.pop(0)

    async def read() -> None:
        indices: list[int] = []
        try:
            async for data, _ in _responses(next_batch):
                assert len(data) < ACCEPTED_BYTES / 4
                response = inference_pb2.GenerateResponse.FromString(data)
                indices.extend(token.index for token in response.tokens)
        except RuntimeError:
            pass  # nothing more comes
        assert indices == list(range(4_500))

    asyncio.run(read())
