"""What a worker sends its gateways, what it can send again, and how much it keeps for that."""

from __future__ import annotations

from baton.engine.sequence import Sequence
from baton.engine.step import SampledToken
from baton.protocol.gateway_messages import StepOutput, StreamPosition, TokenOutput
from baton.protocol.messages import RequestFailed, SequenceEnded
from baton.protocol.request import FinishReason, Request, SamplingParams
from baton.worker.core.role import Command, Send, SendToGateway
from baton.worker.core.token_streams import TOKEN_BYTES, TOKENS_PER_MESSAGE, TokenStreams


def _sequence(request_id: str = "r", output: int = 0, logprobs: int | None = None, prompt: int = 4) -> Sequence:
    sampling = SamplingParams(max_tokens=100, logprobs=logprobs)
    return Sequence.start(Request(request_id, (7,) * prompt, sampling), tuple(range(output)))


def _sample(streams: TokenStreams, sequence: Sequence, token: int, finish: FinishReason | None = None) -> list[int]:
    """One more token of a sequence; returns the indexes of what is sent."""
    sequence.tokens.append(token)
    streams.on_token(sequence, SampledToken(token, -0.5 * token, ((token, -0.5 * token),)), finish)
    return [output.index for output in _tokens(streams.take())]


def _tokens(commands: list[Command] | None) -> list[TokenOutput]:
    assert commands is not None
    return [
        output
        for command in commands
        if isinstance(command, SendToGateway) and isinstance(command.message, StepOutput)
        for output in command.message.tokens
    ]


def _ended(streams: TokenStreams, sequence: Sequence, now: float = 0.0) -> None:
    streams.start(sequence, "g")
    streams.end(sequence.request_id, FinishReason.LENGTH, now)


def test_the_tokens_of_a_step_are_one_message_per_gateway_and_those_without_a_gateway_are_not_sent() -> None:
    streams = TokenStreams()
    streams.attach("g", ())
    streams.attach("h", ())
    sequences = [_sequence(name) for name in "abcd"]
    for sequence, gateway in zip(sequences, ("g", "h", "g", ""), strict=True):
        streams.start(sequence, gateway)
        sequence.tokens.append(5)
        streams.on_token(sequence, SampledToken(5), None)
    commands = streams.take()
    assert [(command.gateway, [one.request_id for one in _tokens([command])]) for command in commands] == [  # type: ignore[union-attr]
        ("g", ["a", "c"]),
        ("h", ["b"]),
    ]
    assert streams.take() == []


def test_a_detached_sequence_is_sent_from_any_index_on_when_its_gateway_asks() -> None:
    streams, sequence = TokenStreams(), _sequence(output=3)
    streams.attach("g", ())
    streams.start(sequence, "g")
    assert _sample(streams, sequence, 50) == [3]
    streams.close("g")
    (held,) = streams.held()
    assert (held.request_id, held.digest, held.num_tokens) == ("r", sequence.request.digest, 4)
    assert held.limit_tokens == 104
    assert _sample(streams, sequence, 51) == []
    replayed = _tokens(streams.attach("g", (StreamPosition("r", 2), StreamPosition("unknown", 0))))
    assert [(output.index, output.token_id) for output in replayed] == [(2, 2), (3, 50), (4, 51)]
    assert _sample(streams, sequence, 52) == [5]


def test_an_ended_sequence_is_not_sent_to_another_request_that_has_its_id() -> None:
    streams, sequence = TokenStreams(), _sequence(output=2)
    _ended(streams, sequence)
    other = _sequence(prompt=5).request
    assert streams.attach("g", (StreamPosition("r", 0, other.digest),)) == []
    same = StreamPosition("r", 1, sequence.request.digest)
    assert [output.index for output in _tokens(streams.attach("g", (same,)))] == [1]


def test_a_gateway_that_does_not_list_a_sequence_of_before_gets_nothing_of_it() -> None:
    streams, sequence = TokenStreams(), _sequence()
    streams.start(sequence, "g")
    streams.close("g")
    assert streams.attach("g", ()) == []
    assert _sample(streams, sequence, 5) == []
    assert streams.attach("other", (StreamPosition("r", 0),)) == []


def test_a_sequence_that_came_while_the_gateway_was_asked_is_attached_though_its_answer_does_not_list_it() -> None:
    streams, begun, adopted = TokenStreams(), _sequence("begun"), _sequence("adopted", output=4)
    streams.start(adopted, "dead")
    streams.close("g")
    streams.start(begun, "g")
    assert streams.adopt("adopted", "g", 2) == []
    assert _sample(streams, begun, 5) == []
    outputs = _tokens(streams.attach("g", ()))
    assert sorted((output.request_id, output.index) for output in outputs) == [
        ("adopted", 2),
        ("adopted", 3),
        ("begun", 0),
    ]
    assert _sample(streams, begun, 5) == [1]


def test_a_sequence_is_adopted_once_and_a_gateway_that_gets_its_tokens_gets_none_twice() -> None:
    streams, sequence = TokenStreams(), _sequence(output=3)
    streams.attach("g", ())
    streams.attach("h", ())
    streams.start(sequence, "g")
    assert streams.adopt("r", "g", 0) == []
    assert [output.index for output in _tokens(streams.adopt("r", "h", 1))] == [1, 2]
    assert streams.adopt("r", "h", 1) == []
    streams.close("g")
    assert _sample(streams, sequence, 5) == [3]
    assert streams.adopt("unknown", "h", 0) is None


def test_a_gateway_that_restarts_gets_a_sequence_again_when_it_adopts_it() -> None:
    streams, sequence = TokenStreams(), _sequence(output=3)
    streams.attach("g", ())
    streams.start(sequence, "g")
    streams.close("g")
    assert streams.attach("g", ()) == []
    assert [output.index for output in _tokens(streams.adopt("r", "g", 1))] == [1, 2]
    assert _sample(streams, sequence, 5) == [3]


def test_a_long_replay_is_sent_in_parts() -> None:
    streams = TokenStreams()
    streams.start(_sequence(output=TOKENS_PER_MESSAGE + 1), "g")
    commands = streams.attach("g", (StreamPosition("r", 0),))
    assert [len(_tokens([command])) for command in commands] == [TOKENS_PER_MESSAGE, 1]


def test_an_ended_sequence_is_replayed_with_its_end_until_it_is_too_old() -> None:
    streams = TokenStreams(60.0)
    _ended(streams, _sequence(output=3), now=10.0)
    asked = (StreamPosition("r", 1),)
    assert [output.finish for output in _tokens(streams.attach("g", asked))] == [None, FinishReason.LENGTH]
    adopted = streams.adopt("r", "g", 2)
    assert adopted is not None
    assert adopted[-1] == Send(SequenceEnded("r", FinishReason.LENGTH, 3))
    streams.expire(69.9)
    assert streams.attach("g", asked)
    streams.expire(70.0)
    assert not streams.attach("g", asked)
    assert streams.adopt("r", "g", 1) is None
    assert streams.num_bytes == 0


def test_ended_sequences_are_bounded_by_count_and_by_bytes_and_the_oldest_goes_first() -> None:
    streams = TokenStreams(most_ended=3)
    for index in range(5):
        _ended(streams, _sequence(f"r{index}", 2), float(index))
    assert [held.request_id for held in streams.held()] == ["r2", "r3", "r4"]
    streams = TokenStreams(most_bytes=25 * TOKEN_BYTES)
    for index in range(5):
        _ended(streams, _sequence(f"r{index}", 6), float(index))  # 10 tokens each
    assert [held.request_id for held in streams.held()] == ["r3", "r4"]
    assert streams.num_bytes == 20 * TOKEN_BYTES


def test_log_probabilities_are_replayed_where_they_were_requested() -> None:
    streams, sequence = TokenStreams(), _sequence(logprobs=1)
    streams.start(sequence, "g")
    for token in (5, 6, 7):
        assert _sample(streams, sequence, token) == []
    replayed = _tokens(streams.attach("g", (StreamPosition("r", 1),)))
    assert [(output.token_id, output.logprob) for output in replayed] == [(6, -3.0), (7, -3.5)]


def test_log_probabilities_that_are_too_many_to_keep_fail_a_replay_that_needs_them() -> None:
    streams, long, short = TokenStreams(most_bytes=5000), _sequence("long", logprobs=1), _sequence("short", logprobs=1)
    streams.start(long, "g")
    streams.start(short, "g")
    for token in range(8):
        _sample(streams, long, token)
    for token in range(10):
        _sample(streams, short, token)
    assert streams.num_bytes <= 5000
    commands = streams.attach("g", (StreamPosition("long", 0), StreamPosition("short", 0)))
    assert {output.request_id for output in _tokens(commands)} == {"short"}
    failed = commands[-1]
    assert isinstance(failed, Send)
    assert isinstance(failed.message, RequestFailed)
    assert (failed.message.request_id, failed.message.error) == ("long", "NotFound")


def test_a_sequence_that_came_from_elsewhere_has_no_log_probabilities_of_before() -> None:
    streams, sequence = TokenStreams(), _sequence(output=2, logprobs=1)
    streams.start(sequence, "g")
    _sample(streams, sequence, 9)
    assert _tokens(streams.attach("g", (StreamPosition("r", 1),))) == []
    assert [output.index for output in _tokens(streams.attach("g", (StreamPosition("r", 2),)))] == [2]


def test_the_first_token_alone_carries_the_number_of_cached_prompt_tokens() -> None:
    streams, sequence = TokenStreams(), _sequence()
    sequence.cached = 3
    streams.start(sequence, "g")
    for token in (5, 6):
        _sample(streams, sequence, token)
    assert [output.cached_tokens for output in _tokens(streams.attach("g", (StreamPosition("r", 0),)))] == [3, 0]


def test_a_sequence_that_is_forgotten_or_replaced_leaves_nothing() -> None:
    streams, sequence = TokenStreams(), _sequence(output=2, logprobs=1)
    streams.start(sequence, "g")
    _sample(streams, sequence, 9)
    streams.end("r", FinishReason.LENGTH, 0.0)
    streams.start(_sequence(), "g")
    assert streams.num_bytes == 0
    streams.forget("r")
    assert streams.held() == ()
