"""What a worker can replay a router that comes new, and how much it keeps for that."""

from __future__ import annotations

from baton.decode_worker.replay_buffer import TOKEN_BYTES, ReplayBuffer
from baton.engine.sequence import Sequence
from baton.protocol.messages import TokenOutput
from baton.protocol.request import FinishReason, Request, SamplingParams


def _sequence(request_id: str = "r", output: int = 0, logprobs: int | None = None, prompt: int = 4) -> Sequence:
    sampling = SamplingParams(max_tokens=100, logprobs=logprobs)
    return Sequence.start(Request(request_id, (7,) * prompt, sampling), tuple(range(output)))


def _say(log: ReplayBuffer, sequence: Sequence, token: int) -> bool:
    index = sequence.num_output
    sequence.tokens.append(token)
    return log.on_token(
        sequence, TokenOutput(sequence.request_id, index, token, -0.5 * token, ((token, -0.5 * token),))
    )


def test_a_running_sequence_is_unheard_until_it_is_asked_for_and_told_again_from_any_index() -> None:
    log, sequence = ReplayBuffer(60.0), _sequence(output=3)
    assert _say(log, sequence, 50)
    (held,) = log.detach([sequence])
    assert (held.request_id, held.digest, held.num_tokens) == ("r", sequence.request.digest, 4)
    assert held.limit_tokens == 104
    assert not _say(log, sequence, 51)
    assert log.replay("r", sequence, 6) is None
    told = log.replay("r", sequence, 2)
    assert told is not None
    assert [(output.index, output.token_id) for output in told] == [(2, 2), (3, 50), (4, 51)]
    assert _say(log, sequence, 52)


def test_a_sequence_that_has_ended_is_told_with_its_end_until_it_is_too_old() -> None:
    log, sequence = ReplayBuffer(60.0), _sequence(output=3)
    log.on_ended(sequence, FinishReason.STOP, 10.0)
    (held,) = log.detach([])
    assert held.num_tokens == 3
    told = log.replay("r", None, 1)
    assert told is not None
    assert [output.finish for output in told] == [None, FinishReason.STOP]
    log.expire(69.9)
    assert log.replay("r", None, 1) is not None
    log.expire(70.0)
    assert log.replay("r", None, 1) is None
    assert log.num_bytes == 0


def test_ended_sequences_are_bounded_by_count_and_by_bytes_and_the_oldest_goes_first() -> None:
    log = ReplayBuffer(60.0, most_ended=3)
    for index in range(5):
        log.on_ended(_sequence(f"r{index}", 2), FinishReason.LENGTH, float(index))
    assert [held.request_id for held in log.detach([])] == ["r2", "r3", "r4"]
    log = ReplayBuffer(60.0, most_bytes=25 * TOKEN_BYTES)
    for index in range(5):
        log.on_ended(_sequence(f"r{index}", 6), FinishReason.LENGTH, float(index))  # 10 tokens each
    assert [held.request_id for held in log.detach([])] == ["r3", "r4"]
    assert log.num_bytes == 20 * TOKEN_BYTES


def test_log_probabilities_are_told_again_where_they_were_asked_for() -> None:
    log, sequence = ReplayBuffer(60.0), _sequence(logprobs=1)
    for token in (5, 6, 7):
        _say(log, sequence, token)
    log.detach([sequence])
    told = log.replay("r", sequence, 1)
    assert told is not None
    assert [(output.token_id, output.logprob) for output in told] == [(6, -3.0), (7, -3.5)]


def test_what_is_too_much_to_keep_cannot_be_told_again() -> None:
    log, long, short = (
        ReplayBuffer(60.0, most_bytes=5000),
        _sequence("long", logprobs=1),
        _sequence("short", logprobs=1),
    )
    for token in range(8):
        _say(log, long, token)
    for token in range(10):
        _say(log, short, token)
    assert log.num_bytes <= 5000
    assert log.replay("long", long, 0) is None
    assert log.replay("short", short, 0) is not None


def test_a_sequence_that_came_from_elsewhere_has_no_log_probabilities_of_before() -> None:
    log, sequence = ReplayBuffer(60.0), _sequence(output=2, logprobs=1)
    _say(log, sequence, 9)
    assert log.replay("r", sequence, 1) is None
    assert log.replay("r", sequence, 2) is not None


def test_what_is_forgotten_or_replaced_leaves_nothing() -> None:
    log, sequence = ReplayBuffer(60.0), _sequence(output=2, logprobs=1)
    _say(log, sequence, 9)
    log.on_ended(sequence, FinishReason.LENGTH, 0.0)
    log.forget("r")
    assert len(log) == 0
    assert log.num_bytes == 0
    assert log.detach([]) == ()
