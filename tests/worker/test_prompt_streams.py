"""Log-probabilities of prompts on their way to gateways: sent once, sent again when they are asked for, bounded."""

from __future__ import annotations

import struct

from baton.engine.sequence import Sequence
from baton.engine.step import SampledToken
from baton.protocol.gateway_messages import StepOutput, StreamPosition
from baton.protocol.messages import RequestFailed
from baton.protocol.prompt_logprobs import TOKENS_PER_MESSAGE, PromptLogprobs
from baton.protocol.request import FinishReason, Request, SamplingParams
from baton.worker.core.role import Command, Send, SendToGateway
from baton.worker.core.token_streams import TokenStreams

ASKED = (StreamPosition("r", 0),)


def _sequence(prompt: int = 11, request_id: str = "r") -> Sequence:
    return Sequence.start(Request(request_id, (7,) * prompt, SamplingParams(prompt_logprobs=1)))


def _logprobs(first: int, count: int, request_id: str = "r") -> PromptLogprobs:
    own = struct.pack(f"<{count}f", *(-float(first + place) for place in range(count)))
    ids = struct.pack(f"<{count}i", *range(first, first + count))
    return PromptLogprobs(request_id, first, 1, own, ids, own)


def _compute(streams: TokenStreams, sequence: Sequence, first: int, count: int) -> list[list[int]]:
    """A step computes these log-probabilities; returns the indexes in each message that is sent."""
    sequence.computed = first + count - 1
    streams.on_prompt_logprobs(_logprobs(first, count, sequence.request_id))
    return _indexes(streams.take())


def _indexes(commands: list[Command]) -> list[list[int]]:
    parts = [command.message for command in commands if isinstance(command, SendToGateway)]
    return [[index for index, _, _ in part.entries()] for part in parts if isinstance(part, PromptLogprobs)]


def _failed(commands: list[Command]) -> list[str]:
    sent = [command.message for command in commands if isinstance(command, Send)]
    return [message.request_id for message in sent if isinstance(message, RequestFailed)]


def test_entries_and_parts_are_the_values_that_were_packed() -> None:
    whole = _logprobs(3, 5)
    assert list(whole.entries()) == [(index, -float(index), ((index, -float(index)),)) for index in range(3, 8)]
    assert list(whole.part(1, 5).entries()) == list(whole.entries())[:2]
    assert list(whole.part(5, 99).entries()) == list(whole.entries())[2:]
    request = _sequence().request
    assert whole.belongs_to(request, 8)
    assert not whole.belongs_to(request, 7)  # An id outside the vocabulary
    assert not _logprobs(7, 5).belongs_to(request, 99)  # Behind the prompt
    assert not PromptLogprobs("r", 3, 1, whole.logprobs, whole.likely_ids[4:], whole.likely_logprobs).belongs_to(
        request, 9
    )
    assert not PromptLogprobs("r", 3, 0, whole.logprobs, b"", b"").belongs_to(request, 9)


def test_they_are_sent_before_the_first_token_in_messages_of_bounded_size() -> None:
    streams, sequence = TokenStreams(), _sequence(TOKENS_PER_MESSAGE + 2)
    streams.attach("g", ())
    streams.start(sequence, "g")
    streams.on_prompt_logprobs(_logprobs(1, TOKENS_PER_MESSAGE + 1))
    sequence.tokens.append(5)
    streams.on_token(sequence, SampledToken(5), None)
    commands = streams.take()
    assert [len(indexes) for indexes in _indexes(commands)] == [TOKENS_PER_MESSAGE, 1]
    last = commands[-1]
    assert isinstance(last, SendToGateway) and isinstance(last.message, StepOutput)
    assert streams.take() == []


def test_a_gateway_that_lost_them_gets_all_again_as_long_as_it_has_no_token() -> None:
    streams, sequence = TokenStreams(), _sequence()
    streams.attach("g", ())
    streams.start(sequence, "g")
    assert _compute(streams, sequence, 1, 4) == [[1, 2, 3, 4]]
    streams.close("g")
    assert _compute(streams, sequence, 5, 2) == []
    assert _indexes(streams.attach("g", ASKED)) == [[1, 2, 3, 4], [5, 6]]
    assert _compute(streams, sequence, 7, 4) == [[7, 8, 9, 10]]
    sequence.tokens.append(5)
    streams.on_token(sequence, SampledToken(5), FinishReason.LENGTH)
    streams.end("r", FinishReason.LENGTH, 0.0)
    assert _indexes(streams.attach("g", ASKED)) == [[1, 2, 3, 4], [5, 6], [7, 8, 9, 10]]
    assert _indexes(streams.attach("g", (StreamPosition("r", 1),))) == []
    streams.forget("r")
    assert streams.num_bytes == 0


def test_a_second_computation_replaces_the_first() -> None:
    streams, sequence = TokenStreams(), _sequence()
    streams.attach("g", ())
    streams.start(sequence, "g")
    _compute(streams, sequence, 1, 6)
    sequence.computed = 0  # Preempted
    assert _compute(streams, sequence, 1, 10) == [list(range(1, 11))]
    assert _indexes(streams.attach("g", ASKED)) == [list(range(1, 11))]


def test_a_replay_that_lacks_some_fails_the_request() -> None:
    streams = TokenStreams(most_bytes=20 * 12)
    first, second = _sequence(request_id="r"), _sequence(request_id="other")
    streams.start(first, "g")
    streams.start(second, "g")
    _compute(streams, first, 1, 10)
    _compute(streams, second, 1, 10)
    assert _failed(streams.attach("g", ASKED)) == []
    _compute(streams, second, 1, 10)
    late = _sequence(request_id="late")
    streams.start(late, "g")
    _compute(streams, late, 1, 10)  # There is no room for three
    assert _failed(streams.attach("g", ASKED)) == ["r"]
    assert streams.num_bytes <= 20 * 12


def test_a_sequence_that_was_handed_over_without_them_cannot_be_sent_from_its_first_token_on() -> None:
    streams, sequence = TokenStreams(), _sequence()
    sequence.tokens += [5, 6]
    streams.start(sequence, "g")
    assert _failed(streams.attach("g", ASKED)) == ["r"]
    assert _failed(streams.attach("g", (StreamPosition("r", 1),))) == []
