"""No message to a client is larger than what any gRPC client accepts, however much has gathered for it."""

from __future__ import annotations

from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.stream import TextToken
from baton.gateway.public_messages import stream_messages
from baton.protocol.errors import WorkerLost
from baton.protocol.latency import Latency
from baton.protocol.request import MAX_LOGPROBS, FinishReason
from baton.protocol.v1 import inference_pb2

ACCEPTED_BYTES = 4 << 20  # by a gRPC client that was not told otherwise
LIKELIEST = tuple((index + 100_000, -1.5) for index in range(MAX_LOGPROBS))
GATHERED = [TextToken(index, 100_000, "a long token of text", -0.5, LIKELIEST) for index in range(4_500)]


def _end(error: WorkerLost | None = None) -> StreamEnd:
    reason = None if error else FinishReason.LENGTH
    return StreamEnd("r", reason, error, 3, len(GATHERED), 0, "", Latency(0.0))


def _read(tokens: list[TextToken], end: StreamEnd | None) -> list[inference_pb2.GenerateResponse]:
    messages = list(stream_messages(tokens, end))
    assert all(len(message) < ACCEPTED_BYTES / 4 for message in messages)
    return [inference_pb2.GenerateResponse.FromString(message) for message in messages]


def test_what_gathered_for_a_client_comes_in_messages_of_bounded_size() -> None:
    responses = _read(GATHERED, _end())
    assert [token.index for response in responses for token in response.tokens] == list(range(4_500))
    assert [response.HasField("finish") for response in responses] == [False] * 4 + [True]


def test_tokens_before_an_error_are_sent_without_an_end() -> None:
    (response,) = _read(GATHERED[:2], _end(WorkerLost("It is gone.")))
    assert len(response.tokens) == 2
    assert not response.HasField("finish")
    assert _read([], _end(WorkerLost("It is gone."))) == []


def test_an_end_without_tokens_has_a_message_of_its_own() -> None:
    (response,) = _read([], _end())
    assert response.finish.reason == inference_pb2.FINISH_REASON_LENGTH
